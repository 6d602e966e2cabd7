-- Sets an amount aside in every scope, or in none.
-- KEYS: of each scope its account, and the expiry of its holds.
-- ARGV: the hold, its time to live, the amount, what must fit, the default limits of each scope.
-- Returns what is refused (the number of the scope, that of the resource, the limit, what is counted) or false, and the
-- accounts that have passed a soft limit.

local id, time_to_live, asked, required = ARGV[1], ARGV[2], amount(ARGV[3]), amount(ARGV[4])

-- Reads limits, of which `-` is unlimited.
local function limits(text)
  local read = {}
  for limit in string.gmatch(text, '%S+') do
    table.insert(read, limit ~= '-' and parse(limit))
  end
  return {read[1], read[2]}, {read[3], read[4]}
end

local function counted(account)
  local used = account.used
  local gain = {less(used[1], ZERO) and ZERO or used[1], less(used[2], ZERO) and ZERO or used[2]}
  return sum(gain, account.held)
end

local now, ahead = clock()
local accounts, warnings = {}, {}
for scope = 1, #KEYS / 2 do
  local account = load(KEYS[2 * scope - 1], KEYS[2 * scope], now)
  local hard, soft = limits(account.limits ~= '' and account.limits or ARGV[4 + scope])
  local before = counted(account)
  for resource = 1, 2 do
    local limit, need = hard[resource] or UNLIMITED, required[resource]
    -- No more can be charged than this, whatever the limit.
    if less(MOST, need) and less(MOST, limit) then
      limit = MOST
    end
    if less(ZERO, need) and less(limit, add(before[resource], need)) then
      return {now, ahead, {{scope, resource, digits(limit), digits(before[resource])}, {}}}
    end
  end
  local after = sum(before, asked)
  for resource = 1, 2 do
    local limit = soft[resource]
    if limit and not less(limit, before[resource]) and less(limit, after[resource]) then
      table.insert(warnings, {scope, text(account.used), text(sum(account.held, asked)), account.limits, text(account.unmatched)})
      break
    end
  end
  accounts[scope] = account
end

for _, account in ipairs(accounts) do
  hold(account, id, asked, now + time_to_live)
  put(account, 'held')
end
return {now, ahead, {false, warnings}}
