-- Ends holds, charges, and sets the holds to keep. Each settlement is made once, by its mark.
-- KEYS: of each settlement the set of its mark; then of each of its scopes its account, and the expiry of its holds.
-- ARGV: how long marks stay, and how many of a set; of each settlement its id, its change, the hold to keep or nothing, the
-- amount and time to live of that, the number of its scopes.

local now, ahead = clock()
local key, touched = 1, {}

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

for argument = 3, #ARGV, 6 do
  local id, change = ARGV[argument], amount(ARGV[argument + 1])
  local kept, more, ends = ARGV[argument + 2], amount(ARGV[argument + 3]), now + ARGV[argument + 4]
  local count = tonumber(ARGV[argument + 5])
  local settled, accounts = KEYS[key], {}
  -- All accounts are read before anything is written, so that one that cannot be read leaves the settlement undone.
  for scope = 1, count do
    local account = load(KEYS[key + 2 * scope - 1], KEYS[key + 2 * scope], now)
    accounts[scope], touched[account.key] = account, account
  end
  -- What takes no memory is written first: when memory is full, a script may go on writing once it has written.
  for _, account in ipairs(accounts) do
    if release(account, id) then
      put(account, 'held')
    end
  end
  local matters = text(change) ~= '0 0' or kept ~= ''
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
  key = key + 1 + 2 * count
end
for _, account in pairs(touched) do
  stop(account)
end
return {now, ahead, true}
