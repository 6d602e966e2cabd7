-- Lets holds live on. Those that are gone stay gone.
-- KEYS: when the holds of a scope end. ARGV: their time to live; for each key a hold.

local now = clock()
for number, expiry in ipairs(KEYS) do
  local id = ARGV[number + 1]
  local score = redis.call('ZSCORE', expiry, id)
  if score and tonumber(score) > now then
    redis.call('ZADD', expiry, now + ARGV[1], id)
  end
end
return true
