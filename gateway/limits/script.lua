-- All that Redis does for limits, in one script, so that a request's limits are held together or
-- not at all. See `shared.py` for the keys.
--
--   begin   KEYS leases, hold, a counter each
--           ARGV 'begin', id, lease_ms,
--                (mode, amount, route, span, start_ms, thresholds, ask, seen) each
--           -> now_ms, OK | REFUSED | CLOCK, (taken, wait_ms, told, slice) each
--   settle  KEYS leases, hold, a counter each; without counters all of the hold is given back
--           ARGV 'settle', id, 'held' | 'own', (mode, span, slice, used) each
--           -> now_ms
--
-- mode: 'w' a sliding window, span = milliseconds of a slice; 'c' a calendar period, span = its end
-- in milliseconds since the epoch; 'p' permits, span = 0.
--
-- A counter is a hash: t what is taken, o the oldest slice, a the alerts told, and a field per slice.
-- Numbers stay below 2^53, so Lua's doubles are exact.
--
-- A server that is out of memory, or a replica, refuses a script's first write and no later one:
-- each branch begins with a write that such a server refuses, so nothing is done by half.

local SLICES, KEEP_MS, SWEEP_MAX = 60, 86400000, 32
local OK, REFUSED, CLOCK = 0, 1, 2

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local leases, hold, id = KEYS[1], KEYS[2], ARGV[2]

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
    if packed and packed ~= 'ended' and packed ~= 'told' then
      give_back(cmsgpack.unpack(packed))
      redis.call('SET', prefix .. late, 'ended', 'KEEPTTL')
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

-- What is taken of a calendar period. One that this store has lost goes on from what the asking
-- worker last saw of it, instead of starting anew.
local function calendar(key, span, seen)
  local got = redis.call('HMGET', key, 't', 'a')
  if not got[1] and seen > 0 then
    redis.call('HSET', key, 't', seen)
    redis.call('PEXPIREAT', key, span + KEEP_MS)
    return seen, 0
  end
  return tonumber(got[1]) or 0, tonumber(got[2]) or 0
end

-- How many thresholds are reached, if that is new. A request that does not fit is 100 %.
local function told(c)
  if c.thresholds == '' or (c.wait ~= 0 and c.ask > c.amount) then return 0 end
  local reached = 0
  for threshold in string.gmatch(c.thresholds, '%d+') do
    if c.wait ~= 0 or c.taken >= tonumber(threshold) then reached = reached + 1 end
  end
  if reached <= c.alerts then return 0 end
  redis.call('HSET', c.key, 'a', reached)
  return reached
end

local function read(c)
  local over
  if c.mode == 'w' then
    c.slice = math.floor(now / c.span)
    c.taken, c.oldest = window(c.key, c.slice)
  elseif c.mode == 'c' then
    c.taken, c.alerts = calendar(c.key, c.span, c.seen)
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
      ask = tonumber(ARGV[at + 6]), seen = tonumber(ARGV[at + 7]), slice = 0, alerts = 0,
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
    local at = #reply
    reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = c.taken, c.wait, told(c), c.slice
  end
  return reply
end

-- Exactly once, in whatever order tellings arrive. A hold is there until it is settled, or 'ended'
-- when its lease was over first; without one it was settled before, or this store has lost it, and
-- then its counters go on from figures that have it in. What a worker let in on its own while the
-- store was away has no hold; that it was told is kept instead.
local function settle()
  local packed = redis.call('GET', hold)
  local own = ARGV[3] == 'own'
  if packed == 'told' or (not packed and not own) then return { now } end
  local held = packed and packed ~= 'ended' and cmsgpack.unpack(packed) or {}
  if own or #KEYS == 2 then  -- all of it is to be given back; the worker has not heard of this hold
    give_back(held)
    held = {}
  end
  for i = 3, #KEYS do
    local at = 4 + (i - 3) * 4
    local before = held[i - 2] and held[i - 2][5] or 0
    correct(KEYS[i], ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]),
      tonumber(ARGV[at + 3]) - before)
  end
  if own then
    redis.call('SET', hold, 'told', 'PX', KEEP_MS)
  else
    redis.call('DEL', hold)
  end
  if packed then redis.call('ZREM', leases, id) end
  return { now }
end

if ARGV[1] == 'begin' then return begin() end
return settle()
