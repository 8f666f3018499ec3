-- Queues all jobs or none.
-- ARGV: now; most queued jobs of a tenant, of all; idempotency: scope, key, fingerprint, lifetime in microseconds ('' for
-- all four without a key); then for each job: id, tenant, batch, not_before, expires ('' for none), how many values
-- follow, and those as fields of its hash.
-- Returns a word and more: 'queued', now, the ids that were there before; 'replayed', the ids; 'mismatch'; or whose
-- limit is reached, 'tenant' or 'total'.
local per_tenant, total = tonumber(ARGV[2]), tonumber(ARGV[3])
local scope, name, fingerprint, lifetime = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local record = fingerprint ~= '' and base .. 'i:' .. #scope .. ':' .. scope .. ':' .. name
if record then
  local raw = redis.call('GET', record)
  local known = raw and cjson.decode(raw)
  if known and tonumber(known.ends) > now then
    if known.fingerprint ~= fingerprint then return { 'mismatch' } end
    return { 'replayed', unpack(known.ids) }
  end
end

local fresh, old, ids, more = {}, {}, {}, {}
local at = 8
while at <= #ARGV do
  local job = { id = ARGV[at], tenant = ARGV[at + 1], batch = ARGV[at + 2], not_before = ARGV[at + 3], expires = ARGV[at + 4] }
  job.first, job.last = at + 6, at + 5 + tonumber(ARGV[at + 5])
  at = job.last + 1
  ids[#ids + 1] = job.id
  if redis.call('EXISTS', base .. 'j:' .. job.id) == 1 then
    old[#old + 1] = job.id
  else
    fresh[#fresh + 1] = job
    more[job.tenant] = (more[job.tenant] or 0) + 1
  end
end
for tenant, count in pairs(more) do
  if redis.call('ZCARD', base .. 'q:' .. tenant) + count > per_tenant then return { 'tenant' } end
end
if #fresh > 0 and redis.call('ZCARD', base .. 'q') + #fresh > total then return { 'total' } end

local places = {}
for _, job in ipairs(fresh) do
  local due = math.max(now, tonumber(job.not_before) or now)
  redis.call('HSET', base .. 'j:' .. job.id, 'id', job.id, 'tenant', job.tenant, 'state', 'queued', 'attempts', 0,
    'created', digits(now), 'due', digits(due), unpack(ARGV, job.first, job.last))
  move(job.id, job.tenant, job.batch ~= '' and job.batch, nil, 'queued')
  queue(job.id, job.tenant, due, job.expires ~= '' and job.expires)
  places[#places + 1] = { job.tenant, due }
end
enter(places)
if record then
  local kept = cjson.encode({ fingerprint = fingerprint, ends = digits(now + tonumber(lifetime)), ids = ids })
  redis.call('SET', record, kept, 'PX', digits(math.ceil(tonumber(lifetime) / 1000)))
end
if #fresh > 0 then ring('work') end
return { 'queued', digits(now), unpack(old) }
