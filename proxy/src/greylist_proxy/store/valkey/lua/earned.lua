-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- Look up what an earner has earned. KEYS: earned; ARGV: now. Reply: now, the value

return { exact(time_or(ARGV[1])), redis.call('GET', KEYS[1]) }
