-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- Forget triplets of one identity, and what they may share by rule 7.
-- KEYS: pending, shared, then known for each triplet; ARGV: a member for each triplet, then shared members
-- Reply: how many triplets there were

local removed = 0
for i = 3, #KEYS do
  if redis.call('DEL', KEYS[i]) + redis.call('ZREM', KEYS[1], ARGV[i - 2]) > 0 then
    removed = removed + 1
  end
end
for i = #KEYS - 1, #ARGV do
  redis.call('ZREM', KEYS[2], ARGV[i])
end
return removed
