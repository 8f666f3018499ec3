-- Starts due jobs, tenants by turns.
-- ARGV: now; worker; token; lease in microseconds; most; the error of a job that every worker lost.
-- Returns whether to ask again at once when there are none (1 or 0), and each job's hash as names and values.
local worker, token, lease, most = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local _, _, stopped = sweep(ARGV[6])
local sleepers = redis.call('ZRANGEBYSCORE', base .. 'sleep', '-inf', digits(now), 'LIMIT', 0, MAX_SWEPT)
local last = #sleepers > 0 and last_turn()
for place, tenant in ipairs(sleepers) do
  redis.call('ZADD', base .. 'ring', digits(last + place), tenant)
  redis.call('ZREM', base .. 'sleep', tenant)
end
if stopped or #sleepers == MAX_SWEPT then return { 1 } end

local claimed = { 0 }
local visits = 0
while #claimed <= most and visits < most + MAX_SWEPT do
  local tenant = redis.call('ZRANGE', base .. 'ring', 0, 0)[1]
  if not tenant then break end
  visits = visits + 1
  local id = redis.call('ZRANGEBYSCORE', base .. 'q:' .. tenant, '-inf', digits(now), 'LIMIT', 0, 1)[1]
  if id then
    local name = base .. 'j:' .. id
    unqueue(id, tenant)
    move(id, tenant, get(id, 'batch')[1], 'queued', 'running')
    redis.call('HINCRBY', name, 'attempts', 1)
    redis.call('HSET', name, 'state', 'running', 'started', digits(now), 'worker', worker, 'token', token)
    redis.call('HDEL', name, 'progress')
    redis.call('ZADD', base .. 'l', digits(now + lease), id)
    claimed[#claimed + 1] = redis.call('HGETALL', name)
  end
  seat(tenant)
end
if visits >= most + MAX_SWEPT then claimed[1] = 1 end
return claimed
