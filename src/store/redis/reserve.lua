-- Sets an amount aside in every scope, or in none.
-- KEYS: of each scope its account, and the expiry of its holds.
-- ARGV: the hold, its time to live, the amount, what must fit, the default limits of each scope.
-- Returns what is refused (the number of the scope, that of the resource, the limit, what is counted) or false, and the soft
-- limits that usage is above.

local id, time_to_live, asked, required = ARGV[1], ARGV[2], amount(ARGV[3]), amount(ARGV[4])

local now, ahead = clock()
local accounts, over = {}, {}
for scope = 1, #KEYS / 2 do
  local account = load(KEYS[2 * scope - 1], KEYS[2 * scope], now)
  local limits = limits(account.limits ~= '' and account.limits or ARGV[4 + scope])
  for resource = 1, 2 do
    local limit, need = in_force(account, limits, resource, now), required[resource]
    local counted = add(gain(account, resource), account.held[resource])
    -- No more can be charged than this, whatever the limit.
    if less(MOST, need) and less(MOST, limit) then
      limit = MOST
    end
    if less(ZERO, need) and less(limit, add(counted, need)) then
      return {now, ahead, {{scope, resource, digits(limit), digits(counted)}, {}}}
    end
  end
  tell(over, account, limits, now, {})
  accounts[scope] = account
end

for _, account in ipairs(accounts) do
  hold(account, id, asked, now + time_to_live)
  put(account, 'held')
end
return {now, ahead, {false, over}}
