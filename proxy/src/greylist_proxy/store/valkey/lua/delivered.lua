-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- Make triplets of one identity known (`policy.delivered`).
-- KEYS: pending, then known for each triplet; ARGV: now, lifetime, then a member for each triplet

local now = time_or(ARGV[1])
local lifetime = tonumber(ARGV[2])
for i = 2, #KEYS do
  local member = ARGV[i + 1]
  local first = read_known(KEYS[i]) or read_score(KEYS[1], member) or now
  write_known(KEYS[i], math.min(first, now), now, now, lifetime)
  redis.call('ZREM', KEYS[1], member)
end
return #KEYS - 1
