-- Returns the account of a scope.
-- KEYS: its account, and the expiry of its holds.

local now, ahead = clock()
local account = load(KEYS[1], KEYS[2], now)
return {now, ahead, {text(account.used), text(account.held), account.limits, text(account.unmatched)}}
