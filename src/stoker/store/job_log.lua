-- What the scripts of the job log share: it is put before each of them. The SQLite adapter does the same in Python
-- (sqlite_moves.py, sqlite_round.py, sqlite_claim.py): change both together.
--
-- KEYS[1]: what all names begin with. ARGV[1]: now in microseconds, or '' for this server's clock.
--   j:ID      hash, a job; times are whole microseconds    s:STATE, s:STATE:TENANT, b:BATCH:STATE   ids, by name
--   q, q:TENANT   queued ids, by when they are due         x   queued ids, by when they expire
--   ring      tenants, by their turn                       sleep   tenants, by when their next job is due
--   l         running ids, by the end of their lease       r   ended ids, by when they are removed
--   c         ended ids, by when their callback is due     e:ID   stream, what a running job says
--   i:...     an idempotency key                           n:TOPIC   channel, rung when there is news
local base = KEYS[1]
local MAX_SWEPT = 256

-- Lua's own tostring has 14 digits; an instant has 16.
local function digits(number)
  return string.format('%.0f', number)
end

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local function ring(topic)
  redis.call('PUBLISH', base .. 'n:' .. topic, '')
end

local function get(id, ...)
  return redis.call('HMGET', base .. 'j:' .. id, ...)
end

-- The names of the indexes that hold a job of this state.
local function indexes(tenant, batch, state)
  local names = { base .. 's:' .. state, base .. 's:' .. state .. ':' .. tenant }
  if batch then names[3] = base .. 'b:' .. batch .. ':' .. state end
  return names
end

-- Into another state, or from nothing, or to nothing.
local function move(id, tenant, batch, from, to)
  if from then
    for _, index in ipairs(indexes(tenant, batch, from)) do redis.call('ZREM', index, id) end
  end
  if to then
    for _, index in ipairs(indexes(tenant, batch, to)) do redis.call('ZADD', index, 0, id) end
  end
end

local function last_turn()
  return tonumber(redis.call('ZREVRANGE', base .. 'ring', 0, 0, 'WITHSCORES')[2] or 0)
end

-- Jobs of these tenants, due then, have come into the queue: {tenant, due}, in this order.
local function enter(places)
  local order, due = {}, {}
  for _, place in ipairs(places) do
    local tenant, at = place[1], place[2]
    if not due[tenant] then order[#order + 1] = tenant end
    due[tenant] = math.min(at, due[tenant] or at)
  end
  for _, tenant in ipairs(order) do
    if not redis.call('ZSCORE', base .. 'ring', tenant) then
      local wake = redis.call('ZSCORE', base .. 'sleep', tenant)
      if due[tenant] <= now then
        redis.call('ZADD', base .. 'ring', digits(last_turn() + 1), tenant)
        redis.call('ZREM', base .. 'sleep', tenant)
      elseif not wake or due[tenant] < tonumber(wake) then
        redis.call('ZADD', base .. 'sleep', digits(due[tenant]), tenant)
      end
    end
  end
end

-- Into the queue's indexes; the tenant's place is given by `enter`.
local function queue(id, tenant, due, expires)
  redis.call('ZADD', base .. 'q', digits(due), id)
  redis.call('ZADD', base .. 'q:' .. tenant, digits(due), id)
  if expires then redis.call('ZADD', base .. 'x', expires, id) end
end

local function unqueue(id, tenant)
  redis.call('ZREM', base .. 'q', id)
  redis.call('ZREM', base .. 'q:' .. tenant, id)
  redis.call('ZREM', base .. 'x', id)
end

-- The tenant's place after its turn: at the end of the round, asleep, or none.
local function seat(tenant)
  local first = redis.call('ZRANGE', base .. 'q:' .. tenant, 0, 0, 'WITHSCORES')
  if first[1] and tonumber(first[2]) <= now then
    redis.call('ZADD', base .. 'ring', digits(last_turn() + 1), tenant)
    return
  end
  redis.call('ZREM', base .. 'ring', tenant)
  redis.call('ZREM', base .. 'sleep', tenant)
  if first[1] then redis.call('ZADD', base .. 'sleep', first[2], tenant) end
end

-- The end of a job, queued or running.
local function finish(id, state)
  local job = get(id, 'tenant', 'batch', 'state', 'keep', 'callback')
  move(id, job[1], job[2], job[3], state)
  if job[3] == 'queued' then unqueue(id, job[1]) end
  redis.call('ZREM', base .. 'l', id)
  redis.call('HSET', base .. 'j:' .. id, 'state', state, 'finished', digits(now))
  redis.call('HDEL', base .. 'j:' .. id, 'token', 'cancelling')
  redis.call('ZADD', base .. 'r', digits(now + tonumber(job[4])), id)
  redis.call('PEXPIRE', base .. 'e:' .. id, 60000)
  if job[5] then
    redis.call('ZADD', base .. 'c', digits(now), id)
    ring('callbacks')
  end
  ring(id)
end

-- A running job goes back into the queue; says its place, for `enter`.
local function requeue(id, not_before)
  local job = get(id, 'tenant', 'batch', 'due', 'expires')
  local due = math.max(tonumber(job[3]), not_before)
  move(id, job[1], job[2], 'running', 'queued')
  redis.call('ZREM', base .. 'l', id)
  redis.call('HSET', base .. 'j:' .. id, 'state', 'queued', 'due', digits(due))
  redis.call('HDEL', base .. 'j:' .. id, 'token')
  queue(id, job[1], due, job[4])
  ring(id)
  return { job[1], due }
end

-- Takes jobs from workers whose lease has ended, and expires queued ones whose time is over.
-- Says how many were taken back, how many expired, and whether it stopped at its bound.
local function sweep(worker_lost)
  local lost = redis.call('ZRANGEBYSCORE', base .. 'l', '-inf', digits(now), 'LIMIT', 0, MAX_SWEPT)
  local places = {}
  for _, id in ipairs(lost) do
    local job = get(id, 'cancelling', 'attempts', 'max_attempts')
    if job[1] then
      finish(id, 'cancelled')
    elseif tonumber(job[2]) >= tonumber(job[3]) then
      finish(id, 'failed')
      redis.call('HSET', base .. 'j:' .. id, 'error', worker_lost)
    else
      places[#places + 1] = requeue(id, 0)
    end
  end
  enter(places)
  if #places > 0 then ring('work') end
  local overdue = redis.call('ZRANGEBYSCORE', base .. 'x', '-inf', digits(now), 'LIMIT', 0, MAX_SWEPT)
  for _, id in ipairs(overdue) do finish(id, 'expired') end
  return #lost, #overdue, #lost == MAX_SWEPT or #overdue == MAX_SWEPT
end
