-- All that Redis does for limits, in one script, so that a request's limits are held together or
-- not at all. See `shared.py` for the keys.
--
--   begin   KEYS leases, hold, a counter each
--           ARGV 'begin', id, lease_ms,
--                (mode, amount, route, span, start_ms, thresholds, ask, seen) each
--           -> now_ms, OK | REFUSED | CLOCK, (taken, wait_ms, told, used, slice) each
--   settle  KEYS leases, hold, a counter each; without counters all of the hold is given back,
--           or, 'cut', was used: all of it, or what ARGV tokens, nano-USD, known nano-USD say
--           ARGV 'settle', id, 'held' | 'own' | 'cut', (mode, span, slice, used, thresholds) each
--           -> now_ms, (used, told, beyond) each
--   resets  KEYS leases; ARGV 'resets'
--           -> now_ms, the counters that were exhausted and whose period is over, each told once
--
-- mode: 'w' a sliding window, span = milliseconds of a slice; 'c' a calendar period, span = its end
-- in milliseconds since the epoch; 'p' permits, span = 0.
-- thresholds: 'share:amount,...' ascending, shares in millionths; told: a share reached, 0 if no news.
--
-- A counter is a hash: t what is taken, holds included; of a window o the oldest slice and a field
-- per slice; of a calendar period u what was used (settled), a the highest share told, x once an
-- overrun was. Numbers stay below 2^53, so Lua's doubles are exact.
--
-- A server that is out of memory, or a replica, refuses a script's first write and no later one:
-- each branch begins with a write that such a server refuses, so nothing is done by half.

local SLICES, KEEP_MS, SWEEP_MAX, WHOLE = 60, 86400000, 32, 1000000
local OK, REFUSED, CLOCK = 0, 1, 2
-- What the key of a hold begins with when its lease is over, or what was our own is told; else it is
-- the hold: an array, which never begins so.
local ENDED, TOLD = 'e', 't'

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local leases, hold, id = KEYS[1], KEYS[2], ARGV[2]
local exhausted = string.sub(leases, 1, -7) .. 'exhausted'

-- Correct what was taken before. What has left its window or its period is past.
local function correct(key, mode, span, slice, delta)
  if delta == 0 then return end
  if mode == 'w' then
    if slice < math.floor(now / span) - SLICES then return end
    local oldest = tonumber(redis.call('HGET', key, 'o'))
    if not oldest or slice < oldest then redis.call('HSET', key, 'o', slice) end
    redis.call('HINCRBY', key, slice, delta)
    redis.call('HINCRBY', key, 't', delta)
    if not oldest then redis.call('PEXPIRE', key, (SLICES + 2) * span) end
  elseif mode == 'p' or now < span + KEEP_MS then
    local taken = redis.call('HINCRBY', key, 't', delta)
    if taken < 0 or mode == 'p' and taken == 0 then
      redis.call('DEL', key)
    elseif taken == delta then  -- it was not there
      redis.call('PEXPIREAT', key, span + KEEP_MS)
    end
  end
end

-- The highest share that `used` reaches, if that is news.
local function reach(key, span, thresholds, used, told)
  local reached = 0
  for share, least in string.gmatch(thresholds, '(%d+):(%d+)') do
    if used >= tonumber(least) then reached = tonumber(share) end
  end
  if reached <= told then return 0 end
  redis.call('HSET', key, 'a', reached)
  if reached >= WHOLE then redis.call('ZADD', exhausted, span, key) end
  return reached
end

-- Note what was used of a calendar period; how much of it there is now, and what that reaches.
local function use(key, span, used, thresholds)
  if now >= span + KEEP_MS then return 0, 0 end
  local total = redis.call('HINCRBY', key, 'u', used)
  if total == used then redis.call('PEXPIREAT', key, span + KEEP_MS) end
  if thresholds == '' then return total, 0 end
  return total, reach(key, span, thresholds, total, tonumber(redis.call('HGET', key, 'a')) or 0)
end

local function give_back(held)
  for _, item in ipairs(held) do
    correct(item[1], item[2], item[3], item[4], -item[5])
  end
end

-- End leases that are over: a few at a call, more than come.
local function sweep()
  local prefix = string.sub(hold, 1, -#id - 1)
  for _, late in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, SWEEP_MAX)) do
    local packed = redis.call('GET', prefix .. late)
    local first = packed and string.sub(packed, 1, 1)
    if first and first ~= ENDED and first ~= TOLD then
      give_back(cmsgpack.unpack(packed))
      redis.call('SET', prefix .. late, ENDED .. packed, 'KEEPTTL')
    end
    redis.call('ZREM', leases, late)
  end
end

-- What a window holds at `slice`, and its oldest slice, after forgetting what is too old.
local function window(key, slice)
  local got = redis.call('HMGET', key, 't', 'o')
  local taken, oldest = tonumber(got[1]) or 0, math.min(tonumber(got[2]) or slice, slice)
  local first = slice - SLICES
  if oldest >= first then return taken, oldest end
  if slice - oldest > 3 * SLICES then
    redis.call('DEL', key)
    return 0, slice
  end
  local old = {}
  for s = oldest, first - 1 do old[#old + 1] = s end
  for _, value in ipairs(redis.call('HMGET', key, unpack(old))) do
    taken = taken - (tonumber(value) or 0)
  end
  redis.call('HSET', key, 't', taken, 'o', first)
  redis.call('HDEL', key, unpack(old))
  return taken, first
end

-- Milliseconds until `need` has left the window.
local function window_wait(key, oldest, slice, span, need)
  local fields = {}
  for s = oldest, slice do fields[#fields + 1] = s end
  for i, value in ipairs(redis.call('HMGET', key, unpack(fields))) do
    need = need - (tonumber(value) or 0)
    if need <= 0 then return math.max(1, (oldest + i + SLICES) * span - now) end
  end
  return -1
end

-- What is taken of a calendar period, the share told, and what is used. One that this store has lost
-- goes on from what the asking worker last saw, instead of starting anew; what was held then counts
-- as used. So does what was there before used amounts were noted.
local function calendar(key, span, seen)
  local got = redis.call('HMGET', key, 't', 'a', 'u')
  local taken = tonumber(got[1])
  if not taken and seen > 0 then
    redis.call('HSET', key, 't', seen, 'u', seen)
    redis.call('PEXPIREAT', key, span + KEEP_MS)
    return seen, 0, seen
  end
  if taken and not got[3] then
    redis.call('HSET', key, 'u', taken)
    got[3] = taken
  end
  return taken or 0, tonumber(got[2]) or 0, tonumber(got[3]) or 0
end

local function read(c)
  local over
  if c.mode == 'w' then
    c.slice = math.floor(now / c.span)
    c.taken, c.oldest = window(c.key, c.slice)
  elseif c.mode == 'c' then
    c.taken, c.told, c.used = calendar(c.key, c.span, c.seen)
  else
    c.taken = tonumber(redis.call('HGET', c.key, 't')) or 0
  end
  over = c.taken + c.ask - c.amount
  if over <= 0 then
    c.wait = 0
  elseif c.ask > c.amount or c.mode == 'p' then
    c.wait = -1
  elseif c.mode == 'c' then
    c.wait = c.span - now
  else
    c.wait = window_wait(c.key, c.oldest, c.slice, c.span, over)
  end
end

local function take(c, lease_ms)
  local before = c.taken
  c.taken = redis.call('HINCRBY', c.key, 't', c.ask)
  if c.mode == 'w' then
    redis.call('HINCRBY', c.key, c.slice, c.ask)
    redis.call('HSET', c.key, 'o', c.oldest)
    redis.call('PEXPIRE', c.key, (SLICES + 2) * c.span)
  elseif c.mode == 'p' then
    redis.call('PEXPIRE', c.key, lease_ms + 60000)
  elseif before == 0 then
    redis.call('HSETNX', c.key, 'u', 0)
    redis.call('PEXPIREAT', c.key, c.span + KEEP_MS)
  end
end

local function begin()
  local lease_ms, counters = tonumber(ARGV[3]), {}
  for i = 3, #KEYS do
    local at = 4 + (i - 3) * 8
    local c = {
      key = KEYS[i], mode = ARGV[at], amount = tonumber(ARGV[at + 1]), route = ARGV[at + 2] == '1',
      span = tonumber(ARGV[at + 3]), start = tonumber(ARGV[at + 4]), thresholds = ARGV[at + 5],
      ask = tonumber(ARGV[at + 6]), seen = tonumber(ARGV[at + 7]), slice = 0, told = 0, used = 0,
    }
    -- A gateway whose clock is off must not open a period that is not now: it is told the time.
    if c.mode == 'c' and (now < c.start or now >= c.span) then return { now, CLOCK } end
    counters[#counters + 1] = c
  end
  sweep()
  local verdict = OK
  for _, c in ipairs(counters) do
    read(c)
    if c.wait ~= 0 and not c.route then verdict = REFUSED end
  end
  if verdict == OK then
    local held = {}
    for _, c in ipairs(counters) do
      if c.wait == 0 then
        take(c, lease_ms)
        held[#held + 1] = { c.key, c.mode, c.span, c.slice, c.ask }
      end
    end
    if #held > 0 then
      redis.call('SET', hold, cmsgpack.pack(held), 'PX', lease_ms + KEEP_MS)
      redis.call('ZADD', leases, now + lease_ms, id)
    end
  end
  local reply = { now, verdict }
  for _, c in ipairs(counters) do
    local at, told = #reply, 0
    if c.wait ~= 0 and c.mode == 'c' and c.ask <= c.amount then  -- it does not fit any more
      told = reach(c.key, c.span, c.thresholds, math.huge, c.told)
    end
    reply[at + 1], reply[at + 2], reply[at + 3] = c.taken, c.wait, told
    reply[at + 4], reply[at + 5] = c.used, c.slice
  end
  return reply
end

-- What its dead worker's journal says a request used of a counter: ARGV tokens, nano-USD, and of those
-- what is known; '' where that is not told, then all that was held counts.
local function journalled(key, held)
  local unit, told, least = string.match(key, ':n:[^:]*:([^:]*):'), nil, 0
  if unit == 'tokens' then told = ARGV[4] end
  if unit == 'usd' then told, least = ARGV[5], tonumber(ARGV[6]) or 0 end
  return tonumber(told or '') or math.max(held, least)
end

-- The worker died before it told what the request used. Permits are free again. Also where the lease
-- was over before anybody read the journal.
local function cut(packed)
  local ended = string.sub(packed, 1, 1) == ENDED
  for _, item in ipairs(cmsgpack.unpack(ended and string.sub(packed, 2) or packed)) do
    local key, mode, span, slice, held = unpack(item)
    local used = mode == 'p' and 0 or journalled(key, held)
    correct(key, mode, span, slice, used - (ended and 0 or held))
    if mode == 'c' and used > 0 then use(key, span, used, '') end
  end
  redis.call('DEL', hold)
  redis.call('ZREM', leases, id)
end

-- Exactly once, in whatever order tellings arrive. A hold is there until it is settled, or marked
-- when its lease was over first; without one it was settled before, or this store has lost it, and
-- then its counters go on from figures that have it in. What a worker let in on its own while the
-- store was away has no hold; that it was told is kept instead.
local function settle()
  local packed = redis.call('GET', hold)
  local first = packed and string.sub(packed, 1, 1)
  local own, reply = ARGV[3] == 'own', { now }
  if first == TOLD or (not packed and not own) then return reply end
  if ARGV[3] == 'cut' then
    cut(packed)
    return reply
  end
  local held = packed and first ~= ENDED and cmsgpack.unpack(packed) or {}
  if own or #KEYS == 2 then  -- all of it is to be given back; the worker has not heard of this hold
    give_back(held)
    held = {}
  end
  for i = 3, #KEYS do
    local at, key = 4 + (i - 3) * 5, KEYS[i]
    local mode, span, used = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 3])
    local before = held[i - 2] and held[i - 2][5]
    correct(key, mode, span, tonumber(ARGV[at + 2]), used - (before or 0))
    local total, told, beyond = 0, 0, 0
    if mode == 'c' and used > 0 then
      local thresholds = ARGV[at + 4]
      total, told = use(key, span, used, thresholds)
      if before and used > before and thresholds ~= '' and redis.call('HSETNX', key, 'x', 1) == 1 then
        beyond = used - before
      end
    end
    at = #reply
    reply[at + 1], reply[at + 2], reply[at + 3] = total, told, beyond
  end
  if own then
    redis.call('SET', hold, TOLD, 'PX', KEEP_MS)
  else
    redis.call('DEL', hold)
  end
  if packed then redis.call('ZREM', leases, id) end
  return reply
end

local function resets()
  local due = redis.call('ZRANGEBYSCORE', exhausted, '-inf', now, 'LIMIT', 0, SWEEP_MAX)
  if #due > 0 then redis.call('ZREM', exhausted, unpack(due)) end
  return { now, due }
end

if ARGV[1] == 'begin' then return begin() end
if ARGV[1] == 'resets' then return resets() end
return settle()
