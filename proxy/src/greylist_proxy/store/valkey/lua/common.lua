-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- What stands before every script: the clock, and how records are written.
-- All times and durations are whole milliseconds (Lua's numbers are doubles, which hold them exactly).
-- A record is first_seen and last_used, an allowance passes, counted_at and last_used: big-endian doubles.
-- TTLs only clean up, and come a little late (SLACK): whether a record counts is always worked out from its times.

local RECORD, EARNED = '>dd', '>ddd'
local SLACK = 60000

-- The time to go by: a test's, else the server's.
local function time_or(given)
  if given ~= '' then
    return tonumber(given)
  end
  local now = redis.call('TIME')
  return tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
end

-- Lua's own way to write a large number loses digits.
local function exact(number)
  return string.format('%.0f', number)
end

-- How long it takes until what began at `since` and lasts for `duration` is surely over.
local function time_to_live(now, since, duration)
  return math.max(1, math.min(since, now) - now + duration + SLACK)
end

local function read_known(key)
  local value = redis.call('GET', key)
  if value then
    local first, last = struct.unpack(RECORD, value)
    return first, last
  end
end

local function write_known(key, first, last, now, lifetime)
  redis.call('SET', key, struct.pack(RECORD, first, last), 'PX', exact(time_to_live(now, last, lifetime)))
end

local function read_score(key, member)
  return tonumber(redis.call('ZSCORE', key, member) or '')
end

-- A set of first sights lives as long as the youngest of them.
local function write_score(key, member, first, now, window)
  redis.call('ZADD', key, exact(first), member)
  local needed = time_to_live(now, first, window)
  if redis.call('PTTL', key) < needed then
    redis.call('PEXPIRE', key, exact(needed))
  end
end

local function read_earned(key)
  local value = redis.call('GET', key)
  if value then
    local passes, counted, used = struct.unpack(EARNED, value)
    return passes, counted, used
  end
end

local function write_earned(key, passes, counted, used, now, lifetime)
  redis.call('SET', key, struct.pack(EARNED, passes, counted, used), 'PX', exact(time_to_live(now, used, lifetime)))
end
