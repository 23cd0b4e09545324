-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- Forget triplets of one identity.
-- KEYS: pending, then known for each triplet; ARGV: unused, then a member for each triplet. Reply: how many there were

local removed = 0
for i = 2, #KEYS do
  if redis.call('DEL', KEYS[i]) + redis.call('ZREM', KEYS[1], ARGV[i]) > 0 then
    removed = removed + 1
  end
end
return removed
