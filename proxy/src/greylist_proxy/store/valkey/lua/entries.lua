-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- Entries and what happened to them.
-- KEYS: entries (hash: name -> JSON), changes (sorted set: name -> number of its last change), meta (hash: epoch, last,
--       floor), expiry (sorted set: name -> when), graves (sorted set: name of what was removed -> when)
-- ARGV: what to do, now, and what that needs
--
-- Changes are numbered by the microseconds of the server's clock, or one up from the last: so a server that came back
-- with older data never gives a number again that a reader has seen. A removed entry stays in `changes` for a day
-- (GRAVE); `floor` is the greatest number that left it. `epoch` names this history, and is made with its first change.

local ENTRIES, CHANGES, META, EXPIRY, GRAVES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local GRAVE = 86400000
local now = time_or(ARGV[2])

local function meta(name)
  return redis.call('HGET', META, name) or ''
end

local function change(name)
  local clock = redis.call('TIME')
  local number = math.max((tonumber(meta('last')) or 0) + 1, tonumber(clock[1]) * 1000000 + tonumber(clock[2]))
  redis.call('HSET', META, 'last', exact(number))
  redis.call('ZADD', CHANGES, exact(number), name)
end

local function remove(name)
  redis.call('HDEL', ENTRIES, name)
  redis.call('ZREM', EXPIRY, name)
  redis.call('ZADD', GRAVES, exact(now), name)
  change(name)
end

-- What is there of an entry; one that can't be read stands in nobody's way.
local function read(value)
  local is_read, entry = pcall(cjson.decode, value)
  return is_read and type(entry) == 'table' and entry or {}
end

local function has_expired(entry)
  return type(entry.expires) == 'number' and entry.expires <= now
end

local function ends_later(entry, expires)
  if expires == '' then
    return false
  end
  return entry.expires == cjson.null or (type(entry.expires) == 'number' and entry.expires > tonumber(expires))
end

local doings = {}

-- ARGV: name, JSON, source, expires ('' for never), an epoch for a store without, merge (1, 0). Reply: 1 where it was put
function doings.put(name, value, source, expires, epoch, merge)
  local old = redis.call('HGET', ENTRIES, name)
  if old then
    local was = read(old)
    if not has_expired(was) and was.source == 'operator' and (merge == '1' or source ~= 'operator') then
      return 0
    end
    if merge == '1' and (old == value or (was.source == source and ends_later(was, expires))) then
      return 0
    end
  end
  redis.call('HSETNX', META, 'epoch', epoch)
  redis.call('HSET', ENTRIES, name, value)
  redis.call('ZREM', GRAVES, name)
  if expires == '' then
    redis.call('ZREM', EXPIRY, name)
  else
    redis.call('ZADD', EXPIRY, expires, name)
  end
  change(name)
  return 1
end

-- ARGV: name. Reply: 1 where there was one that had not expired
function doings.remove(name)
  local old = redis.call('HGET', ENTRIES, name)
  if not old then
    return 0
  end
  remove(name)
  return has_expired(read(old)) and 0 or 1
end

-- ARGV: the reader's epoch, its floor and number, how many at most. Reply: restart, epoch, floor, number, more, then name
-- and JSON (nil: removed) for each. A reader that began when `floor` was what it is now has missed nothing.
function doings.changes(epoch, base, number, limit)
  limit = tonumber(limit)
  local floor = meta('floor')
  number = tonumber(number) or 0
  local last = tonumber(meta('last')) or 0
  local missed = base ~= floor and number < (tonumber(floor) or 0)
  local restart = epoch ~= meta('epoch') or number > last or missed
  if restart then
    number = 0
  end
  if restart or number >= (tonumber(floor) or 0) then
    base = floor
  end
  local found = redis.call('ZRANGEBYSCORE', CHANGES, '(' .. exact(number), '+inf', 'WITHSCORES', 'LIMIT', 0, limit + 1)
  local reply = { restart and 1 or 0, meta('epoch'), base, 0, #found > 2 * limit and 1 or 0 }
  for i = 1, math.min(#found, 2 * limit), 2 do
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = redis.call('HGET', ENTRIES, found[i])
    number = tonumber(found[i + 1])
  end
  reply[4] = exact(number)
  return reply
end

-- ARGV: how many at most. Reply: 1 where there may be more
function doings.expire(limit)
  limit = tonumber(limit)
  local expired = redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', exact(now), 'LIMIT', 0, limit)
  for _, name in ipairs(expired) do
    remove(name)
  end
  local graves = redis.call('ZRANGEBYSCORE', GRAVES, '-inf', exact(now - GRAVE), 'LIMIT', 0, limit)
  for _, name in ipairs(graves) do
    local number = tonumber(redis.call('ZSCORE', CHANGES, name) or '') or 0
    redis.call('HSET', META, 'floor', exact(math.max(number, tonumber(meta('floor')) or 0)))
    redis.call('ZREM', CHANGES, name)
    redis.call('ZREM', GRAVES, name)
  end
  return (#expired == limit or #graves == limit) and 1 or 0
end

return doings[ARGV[1]](unpack(ARGV, 3))
