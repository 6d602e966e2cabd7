-- Ends holds, and charges. Each settlement once, by its mark.
-- KEYS: of each settlement its mark; then of each of its scopes its account, and when its holds end.
-- ARGV: how long marks stay; of each settlement its id, its change, the number of its scopes.

local now, key = clock(), 1
for argument = 2, #ARGV, 3 do
  local id, change, count = ARGV[argument], amount(ARGV[argument + 1]), tonumber(ARGV[argument + 2])
  local mark, accounts = KEYS[key], {}
  -- All are read before anything is written: what cannot be read settles nothing.
  for scope = 1, count do
    accounts[scope] = load(KEYS[key + 2 * scope - 1], KEYS[key + 2 * scope], now)
  end
  for _, account in ipairs(accounts) do
    if release(account, id) then
      put(account, 'held')
    end
  end
  if text(change) ~= '0 0' and redis.call('SET', mark, '', 'NX', 'PX', ARGV[1]) then
    for _, account in ipairs(accounts) do
      local used = sum(account.used, change)
      account.used = {within_range(used[1]), within_range(used[2])}
      put(account, 'used')
    end
  end
  key = key + 1 + 2 * count
end
return true
