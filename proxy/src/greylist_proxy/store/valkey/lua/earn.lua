-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- Count what an earner earns by a delivery; the twin of `policy.earn`, a test holds the two together.
-- KEYS: earned; ARGV: now, lifetime, counts (1, 0), policy.COUNT_EVERY

local now = time_or(ARGV[1])
local lifetime, counts, every = tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local passes, counted, used = read_earned(KEYS[1])
if used and now - used > lifetime then
  passes = nil
end
if not passes then
  if not counts then
    return 0
  end
  passes, counted = 1, now
else
  counted = math.min(counted, now)
  if counts and now - counted >= every then
    passes, counted = passes + 1, now
  end
end
write_earned(KEYS[1], passes, counted, now, now, lifetime)
return 1
