-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- Merge triplets of one identity with what is here: the earlier first sight and the later use count.
-- KEYS: pending, then known for each triplet
-- ARGV: now, lifetime, retry_window, then for each triplet member, first_seen, last_used ('' for none)
-- Reply: how many changed something. What has expired, here or there, merges with nothing.

local now = time_or(ARGV[1])
local lifetime, window = tonumber(ARGV[2]), tonumber(ARGV[3])

local function alive(first, last)
  if last then
    return now - last <= lifetime
  end
  return first and now - first <= window
end

local changed = 0
for i = 2, #KEYS do
  local member = ARGV[3 * i - 2]
  local new_first, new_last = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  if alive(new_first, new_last) then
    local first, last = read_known(KEYS[i])
    first = first or read_score(KEYS[1], member)
    if not alive(first, last) then
      first, last = nil, nil
    end
    local merged_first = math.min(first or new_first, new_first)
    local merged_last = last and new_last and math.max(last, new_last) or last or new_last
    if merged_first ~= first or merged_last ~= last then
      changed = changed + 1
      if merged_last then
        write_known(KEYS[i], merged_first, merged_last, now, lifetime)
        redis.call('ZREM', KEYS[1], member)
      else
        write_score(KEYS[1], member, merged_first, now, window)
        redis.call('DEL', KEYS[i])
      end
    end
  end
end
return changed
