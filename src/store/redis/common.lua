-- Functions that the scripts share. This file is prepended to each of them. Each returns the time, how far the clock was set
-- ahead, and its answer.
--
-- A Lua number is a double: exact up to 2^53, and a quota may be larger. So a figure is two numbers, each of them exact:
-- figure = high * 10^10 + low, with 0 <= low < 10^10. It is stored as plain decimal digits.

-- The last key has how far the clock was set ahead, in milliseconds. It is missing if it was not. The last two arguments are
-- what time the process expects, and how far the clock was ahead when it was told so. They are empty if it was not told.
local ahead_key = table.remove(KEYS)
local told_ahead = tonumber(table.remove(ARGV))
local expected = tonumber(table.remove(ARGV))

local BASE = 1e10

local function figure(high, low)
  local carry = math.floor(low / BASE)
  return {high + carry, low - carry * BASE}
end

local function negative(a)
  return figure(-a[1], -a[2])
end

local function parse(text)
  local sign, digits = string.match(text, '^(%-?)(%d+)$')
  local parsed = figure(tonumber(string.sub(digits, 1, -11)) or 0, tonumber(string.sub(digits, -10)))
  if sign == '-' then
    return negative(parsed)
  end
  return parsed
end

local function digits(a)
  if a[1] < 0 then
    return '-' .. digits(negative(a))
  elseif a[1] == 0 then
    return string.format('%.0f', a[2])
  end
  return string.format('%.0f%010.0f', a[1], a[2])
end

local function add(a, b)
  return figure(a[1] + b[1], a[2] + b[2])
end

local function less(a, b)
  return a[1] < b[1] or a[1] == b[1] and a[2] < b[2]
end

local ZERO = {0, 0}
-- The range of a signed number of 64 bits. Usage stops at its ends.
local MOST, LEAST = parse('9223372036854775807'), parse('-9223372036854775808')
-- Stands for unlimited.
local UNLIMITED = parse('18446744073709551615')

local function within_range(a)
  if less(MOST, a) then
    return MOST
  elseif less(a, LEAST) then
    return LEAST
  end
  return a
end

-- Reads an amount or a change: bytes and objects. A missing field is zero.
local function amount(text)
  if not text then
    return {ZERO, ZERO}
  end
  local bytes, objects = string.match(text, '^(%S+) (%S+)$')
  return {parse(bytes), parse(objects)}
end

local function text(amount)
  return digits(amount[1]) .. ' ' .. digits(amount[2])
end

local function sum(a, b)
  return {add(a[1], b[1]), add(a[2], b[2])}
end

local function difference(a, b)
  return {add(a[1], negative(b[1])), add(a[2], negative(b[2]))}
end

-- Writes a field, or deletes it if it is zero: an account without fields is gone.
local function put(account, field)
  local value = text(account[field])
  if value == '0 0' then
    redis.call('HDEL', account.key, field)
  else
    redis.call('HSET', account.key, field, value)
  end
end

-- Ends a hold. Returns whether there was one; the caller puts `held` then.
local function release(account, id)
  local held = redis.call('HGET', account.key, id)
  redis.call('ZREM', account.expiry, id)
  if not held then
    return false
  end
  redis.call('HDEL', account.key, id)
  account.held = difference(account.held, amount(held))
  return true
end

-- Adds to a hold. The caller puts `held`.
local function hold(account, id, more, ends)
  local held = sum(amount(redis.call('HGET', account.key, id)), more)
  redis.call('HSET', account.key, id, text(held))
  redis.call('ZADD', account.expiry, ends, id)
  account.held = sum(account.held, more)
end

-- The time in milliseconds, by the clock of this node less what it was set ahead. Returns that too.
local function clock()
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local ahead = tonumber(redis.call('GET', ahead_key) or 0)
  now = now - ahead
  -- What was expected is older than this step by how long the last answer and this call were under way: ten seconds at the
  -- most, as callers wait for five. Nothing makes it newer. Who has not heard of the last correction makes none.
  if told_ahead == ahead and (now < expected - 1000 or now > expected + 15000) then
    local corrected = ahead + now - expected
    now = expected
    -- When memory is full, the next step finds it again.
    if not redis.pcall('SET', ahead_key, string.format('%.0f', corrected)).err then
      ahead = corrected
    end
  end
  return now, ahead
end

-- Stops usage where it is as far below zero as is held.
local function stop(account)
  local stops = false
  for resource = 1, 2 do
    -- Added to zero, as there is a negative zero.
    local least = add(ZERO, negative(account.held[resource]))
    local beyond = add(least, negative(account.used[resource]))
    if less(ZERO, beyond) then
      account.used[resource] = least
      account.unmatched[resource] = within_range(add(account.unmatched[resource], beyond))
      stops = true
    end
  end
  if stops then
    -- What takes no memory first, see settle.lua.
    redis.call('HDEL', account.key, 'unmatched')
    put(account, 'used')
    put(account, 'unmatched')
  end
end

-- Loads the account of a scope, and deletes the holds that have expired.
local function load(key, expiry, now)
  local dead = redis.call('ZRANGEBYSCORE', expiry, '-inf', now)
  local found = redis.call('HMGET', key, 'used', 'held', 'limits', 'unmatched', 'over')
  local account = {
    key = key,
    expiry = expiry,
    used = amount(found[1]),
    held = amount(found[2]),
    limits = found[3] or '',
    unmatched = amount(found[4]),
    -- Since when usage has been above the soft limits, in milliseconds. Two numbers, or nil.
    over = {},
  }
  if found[5] then
    local bytes, objects = string.match(found[5], '^(%S+) (%S+)$')
    account.over = {tonumber(bytes), tonumber(objects)}
  end
  for _, id in ipairs(dead) do
    release(account, id)
  end
  if #dead > 0 then
    put(account, 'held')
  end
  stop(account)
  return account
end


-- What is used, which is nothing where it is below zero.
local function gain(account, resource)
  return less(account.used[resource], ZERO) and ZERO or account.used[resource]
end

-- Reads limits: hard bytes, hard objects, soft bytes, soft objects, and the grace in milliseconds. `-` is none.
local function limits(text)
  local read = {}
  for limit in string.gmatch(text, '%S+') do
    table.insert(read, limit ~= '-' and limit)
  end
  local function parsed(place)
    return read[place] and parse(read[place])
  end
  return {
    hard = {parsed(1), parsed(2)},
    soft = {parsed(3), parsed(4)},
    grace = read[5] and tonumber(read[5]),
  }
end

-- Whether usage of a resource is above its soft limit.
local function is_above(account, limits, resource)
  local soft = limits.soft[resource]
  return soft and less(soft, gain(account, resource))
end

-- For how long the timer of a resource has run.
local function elapsed(account, resource, now)
  local since = account.over[resource]
  return since and math.max(now - since, 0)
end

-- The most that a scope may use: its soft limit once usage has been above that for the grace.
local function in_force(account, limits, resource, now)
  local hard, over_for = limits.hard[resource] or UNLIMITED, elapsed(account, resource, now)
  if over_for and limits.grace and over_for >= limits.grace and is_above(account, limits, resource) then
    local soft = limits.soft[resource]
    return less(soft, hard) and soft or hard
  end
  return hard
end

-- Adds to `over` the soft limits that an account is above: its key, the resource, the limit, what is used, milliseconds until it
-- is enforced or `-`, and whether it was crossed.
local function tell(over, account, limits, now, crossed)
  for resource = 1, 2 do
    local over_for = elapsed(account, resource, now)
    if over_for and is_above(account, limits, resource) then
      local left = limits.grace and string.format('%.0f', math.max(limits.grace - over_for, 0)) or '-'
      local soft, used = digits(limits.soft[resource]), digits(gain(account, resource))
      table.insert(over, {account.key, resource, soft, used, left, crossed[resource] and 1 or 0})
    end
  end
end
