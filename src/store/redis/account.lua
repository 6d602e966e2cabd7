-- Returns the account of a scope.
-- KEYS: its account, and the expiry of its holds.

local now, ahead = clock()
local account = load(KEYS[1], KEYS[2], now)
local over = {}
for resource = 1, 2 do
  local over_for = elapsed(account, resource, now)
  over[resource] = over_for and string.format('%.0f', over_for) or '-'
end
local figures = {text(account.used), text(account.held), account.limits, text(account.unmatched), table.concat(over, ' ')}
return {now, ahead, figures}
