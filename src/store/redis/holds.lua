-- What is held in a scope.
-- KEYS: its account, and when its holds end. ARGV: how many at the most.

local now = clock()
load(KEYS[1], KEYS[2], now)
local holds = {}
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for index = 1, #found, 2 do
  local id = found[index]
  local held = amount(redis.call('HGET', KEYS[1], id))
  table.insert(holds, {id, text(held), found[index + 1] - now})
end
return holds
