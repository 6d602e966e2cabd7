-- Prolongs holds. Those that are gone stay gone.
-- KEYS: for each hold the expiry of its scope's holds. ARGV: the time to live, then the holds.

local now, ahead = clock()
for number, expiry in ipairs(KEYS) do
  local id = ARGV[number + 1]
  local score = redis.call('ZSCORE', expiry, id)
  if score and tonumber(score) > now then
    redis.call('ZADD', expiry, now + ARGV[1], id)
  end
end
return {now, ahead, true}
