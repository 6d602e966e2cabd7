-- Where a scope stands.
-- KEYS: its account, and when its holds end.

local account = load(KEYS[1], KEYS[2], clock())
return {text(account.used), text(account.held), account.limits}
