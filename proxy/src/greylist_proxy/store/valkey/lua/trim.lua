-- Copyright: the mailops.tarpit contributors
-- SPDX-License-Identifier: GPL-3.0-or-later
-- Drop the decisions that are too old. KEYS: decisions; ARGV: how old they may get, '~' to leave some or '=' for all

local oldest = math.max(0, time_or('') - tonumber(ARGV[1]))
return redis.call('XTRIM', KEYS[1], 'MINID', ARGV[2], exact(oldest))
