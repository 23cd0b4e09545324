-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- Merge what an earner has earned elsewhere: the greater count and the later times.
-- KEYS: earned; ARGV: now, lifetime, passes, counted_at, last_used. Reply: 1 where that changed something

local now = time_or(ARGV[1])
local lifetime = tonumber(ARGV[2])
local new_passes, new_counted, new_used = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if now - new_used > lifetime then
  return 0
end
local passes, counted, used = read_earned(KEYS[1])
if used and now - used <= lifetime then
  if new_passes <= passes and new_counted <= counted and new_used <= used then
    return 0
  end
  new_passes, new_counted, new_used = math.max(passes, new_passes), math.max(counted, new_counted), math.max(used, new_used)
end
write_earned(KEYS[1], new_passes, new_counted, new_used, now, lifetime)
return 1
