-- Returns the holds in a scope.
-- KEYS: its account, and the expiry of its holds. ARGV: how many to return at most.

local now, ahead = clock()
load(KEYS[1], KEYS[2], now)
local holds = {}
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for index = 1, #found, 2 do
  local id = found[index]
  local held = amount(redis.call('HGET', KEYS[1], id))
  table.insert(holds, {id, text(held), found[index + 1] - now})
end
return {now, ahead, holds}
