-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- Look a sighting up, and keep what is new of it (`Store.observe`), for one identity.
-- KEYS: known, pending, shared; and all that the client's identities have earned, where that lies in the same slot
-- ARGV: now, member, shared member, record (1, 0), retry_window, lifetime, max_pending, auto_allow_after,
--       exempt (1 where the caller found that out by itself), own (1 where KEYS[4] is what this identity has earned)
-- Reply: `now shared first_seen last_used` and the earned value: what was known before, nothing where nothing was

local now = time_or(ARGV[1])
local member, shared_member = ARGV[2], ARGV[3]
local record = ARGV[4] == '1'
local window, lifetime = tonumber(ARGV[5]), tonumber(ARGV[6])
local max_pending, auto_allow_after = tonumber(ARGV[7]), tonumber(ARGV[8])
local exempt = ARGV[9] == '1'

local earned = false
for index = 4, #KEYS do
  local value = redis.call('GET', KEYS[index])
  local is_own = index == 4 and ARGV[10] == '1'
  if is_own then
    earned = value
  end
  if value then
    local passes, _, used = struct.unpack(EARNED, value)
    if auto_allow_after > 0 and passes >= auto_allow_after and now - used <= lifetime then
      record = false -- of no identity
      exempt = exempt or is_own
    end
  end
end

-- The first sight in a set, where it still counts.
local function pending_in(key, name)
  local first = read_score(key, name)
  return first and now - first <= window and first or nil
end

local first, last = read_known(KEYS[1])
local was_known = first
if last and now - last > lifetime then
  first, last = nil, nil
end
first = first or pending_in(KEYS[2], member)
local shared = false
local set, name = KEYS[2], member
if not first and not exempt then
  first = pending_in(KEYS[3], shared_member)
  shared = first or redis.call('ZCOUNT', KEYS[2], exact(now - window), '+inf') >= max_pending
  if shared then
    set, name = KEYS[3], shared_member
  end
end

if record then
  if last then
    if first > now or last > now then
      write_known(KEYS[1], math.min(first, now), math.min(last, now), now, lifetime)
    elseif redis.call('PTTL', KEYS[1]) < time_to_live(now, last, lifetime) - SLACK then
      -- The lifetime was shorter when it was written.
      redis.call('PEXPIRE', KEYS[1], exact(time_to_live(now, last, lifetime)))
    end
  elseif not first or first > now then
    -- First what takes memory: after any other change the server no longer looks whether there is some.
    write_score(set, name, now, now, window)
    redis.call('ZREMRANGEBYSCORE', set, '-inf', '(' .. exact(now - window))
    if was_known then
      redis.call('DEL', KEYS[1])
    end
  end
end

-- One text is read faster than four.
local found = { exact(now), shared and '1' or '0', first and exact(first) or '', last and exact(last) or '' }
return { table.concat(found, ' '), earned or false }
