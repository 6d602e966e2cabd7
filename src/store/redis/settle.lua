-- Ends holds, charges, sets the holds to keep, and reviews the timers of what is charged. Each settlement is made once, by its
-- mark.
-- KEYS: of each settlement the set of its mark; then of each of its scopes its account, and the expiry of its holds.
-- ARGV: how long marks stay, and how many of a set; of each settlement its id, its change, the hold to keep or nothing, the
-- amount and time to live of that, the number of its scopes, and the default limits of each, or nothing if they are unknown.
-- Returns the soft limits that usage is above.

local now, ahead = clock()
local key, touched, charged, defaults = 1, {}, {}, {}

-- Marks an id as settled. Returns whether it was not before.
local function mark(settled, id)
  if redis.call('ZADD', settled, 'NX', now, id) == 0 then
    return false
  end
  redis.call('PEXPIRE', settled, ARGV[1])
  -- More than were added.
  local old = redis.call('ZRANGEBYSCORE', settled, '-inf', now - ARGV[1], 'LIMIT', 0, 2)
  if #old > 0 then
    redis.call('ZREM', settled, unpack(old))
  end
  redis.call('ZREMRANGEBYRANK', settled, 0, -1 - ARGV[2])
  return true
end

local argument = 3
while argument <= #ARGV do
  local id, change = ARGV[argument], amount(ARGV[argument + 1])
  local kept, more, ends = ARGV[argument + 2], amount(ARGV[argument + 3]), now + ARGV[argument + 4]
  local count = tonumber(ARGV[argument + 5])
  local settled, accounts = KEYS[key], {}
  local changes = text(change) ~= '0 0'
  -- All accounts are read before anything is written, so that one that cannot be read leaves the settlement undone.
  for scope = 1, count do
    local account = load(KEYS[key + 2 * scope - 1], KEYS[key + 2 * scope], now)
    accounts[scope], touched[account.key] = account, account
    charged[account.key] = charged[account.key] or changes
    local default = ARGV[argument + 5 + scope]
    if default ~= '' then
      defaults[account.key] = default
    end
  end
  -- What takes no memory is written first: when memory is full, a script may go on writing once it has written.
  for _, account in ipairs(accounts) do
    if release(account, id) then
      put(account, 'held')
    end
  end
  local matters = changes or kept ~= ''
  if matters and mark(settled, id) then
    for _, account in ipairs(accounts) do
      local used = sum(account.used, change)
      account.used = {within_range(used[1]), within_range(used[2])}
      put(account, 'used')
      if kept ~= '' then
        hold(account, kept, more, ends)
        put(account, 'held')
      end
    end
  end
  key, argument = key + 1 + 2 * count, argument + 6 + count
end

-- Starts the timers of resources that are above their soft limits, and resets the others. Returns which were started.
local function review(account, limits)
  local crossed, words, changed = {}, {}, false
  for resource = 1, 2 do
    local since = account.over[resource]
    local reviewed = is_above(account, limits, resource) and (since or now) or nil
    crossed[resource] = reviewed and not since
    changed = changed or reviewed ~= since
    account.over[resource] = reviewed
    words[resource] = reviewed and string.format('%.0f', reviewed) or '-'
  end
  local over = table.concat(words, ' ')
  if changed and over == '- -' then
    redis.call('HDEL', account.key, 'over')
  elseif changed then
    redis.call('HSET', account.key, 'over', over)
  end
  return crossed
end

local over = {}
for _, account in pairs(touched) do
  stop(account)
  local known = account.limits ~= '' and account.limits or defaults[account.key]
  if known then
    local limits = limits(known)
    local crossed = charged[account.key] and review(account, limits) or {}
    tell(over, account, limits, now, crossed)
  end
end
return {now, ahead, over}
