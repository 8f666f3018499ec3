-- The job log, version 1. Times are whole microseconds since 1970. Later versions are changes, in files beside this one.
CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  tenant TEXT NOT NULL,
  state TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  created INTEGER NOT NULL,
  due INTEGER NOT NULL, -- its place in the queue: when it was submitted, or is not to be started before
  not_before INTEGER,
  expires INTEGER,
  attempts INTEGER NOT NULL DEFAULT 0,
  max_attempts INTEGER NOT NULL,
  keep INTEGER NOT NULL,
  batch TEXT,
  custom_id TEXT,
  worker TEXT,
  token TEXT,
  lease INTEGER,
  started INTEGER,
  finished INTEGER,
  remove_at INTEGER,
  cancelling INTEGER NOT NULL DEFAULT 0,
  has_callback INTEGER NOT NULL,
  callback_at INTEGER,
  progress BLOB
);
-- What is large lies apart, so that a change of state does not write it again.
CREATE TABLE bodies (seq INTEGER PRIMARY KEY, request BLOB NOT NULL, callback BLOB);
CREATE TABLE outcomes (seq INTEGER PRIMARY KEY, result BLOB, error BLOB, deliveries BLOB);

CREATE INDEX jobs_of_tenant_due ON jobs (tenant, due, id) WHERE state = 'queued';
CREATE INDEX jobs_due ON jobs (due, id) WHERE state = 'queued';
CREATE INDEX jobs_expiring ON jobs (expires, id) WHERE state = 'queued' AND expires IS NOT NULL;
CREATE INDEX jobs_leased ON jobs (lease, id) WHERE state = 'running';
CREATE INDEX jobs_ended ON jobs (remove_at) WHERE remove_at IS NOT NULL;
CREATE INDEX jobs_calling ON jobs (callback_at, id) WHERE callback_at IS NOT NULL;
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE INDEX jobs_by_tenant ON jobs (tenant, state, id);
CREATE INDEX jobs_by_batch ON jobs (batch, state, id) WHERE batch IS NOT NULL;

-- Tenants that have queued jobs: `turn` is the place in the round; without one, nothing is due before `wake`.
CREATE TABLE tenants (name TEXT PRIMARY KEY, turn INTEGER, wake INTEGER) WITHOUT ROWID;
CREATE INDEX tenants_in_turn ON tenants (turn) WHERE turn IS NOT NULL;
CREATE INDEX tenants_asleep ON tenants (wake, name) WHERE turn IS NULL;

CREATE TABLE idempotency (
  scope TEXT NOT NULL,
  key TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  expires INTEGER NOT NULL,
  jobs TEXT NOT NULL, -- a JSON array of ids
  PRIMARY KEY (scope, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_expiring ON idempotency (expires);

CREATE TABLE probe (id INTEGER PRIMARY KEY, at INTEGER NOT NULL);

-- How many jobs are in each state: of all (''), of a tenant ('t' and its name), of a batch ('b' and its name).
CREATE TABLE tallies (whose TEXT NOT NULL, state TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (whose, state))
WITHOUT ROWID;
CREATE TRIGGER tally_new AFTER INSERT ON jobs BEGIN
  INSERT INTO tallies SELECT '', new.state, 1 WHERE true ON CONFLICT DO UPDATE SET n = n + 1;
  INSERT INTO tallies SELECT 't' || new.tenant, new.state, 1 WHERE true ON CONFLICT DO UPDATE SET n = n + 1;
  INSERT INTO tallies SELECT 'b' || new.batch, new.state, 1 WHERE new.batch IS NOT NULL
  ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER tally_gone AFTER DELETE ON jobs BEGIN
  UPDATE tallies SET n = n - 1 WHERE state = old.state AND whose IN ('', 't' || old.tenant, 'b' || old.batch);
  DELETE FROM tallies WHERE n = 0 AND state = old.state AND whose IN ('', 't' || old.tenant, 'b' || old.batch);
END;
CREATE TRIGGER tally_moved AFTER UPDATE OF state ON jobs WHEN old.state <> new.state BEGIN
  UPDATE tallies SET n = n - 1 WHERE state = old.state AND whose IN ('', 't' || old.tenant, 'b' || old.batch);
  DELETE FROM tallies WHERE n = 0 AND state = old.state AND whose IN ('', 't' || old.tenant, 'b' || old.batch);
  INSERT INTO tallies SELECT '', new.state, 1 WHERE true ON CONFLICT DO UPDATE SET n = n + 1;
  INSERT INTO tallies SELECT 't' || new.tenant, new.state, 1 WHERE true ON CONFLICT DO UPDATE SET n = n + 1;
  INSERT INTO tallies SELECT 'b' || new.batch, new.state, 1 WHERE new.batch IS NOT NULL
  ON CONFLICT DO UPDATE SET n = n + 1;
END;
