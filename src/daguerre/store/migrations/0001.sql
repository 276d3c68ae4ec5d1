-- A job is kept whole as JSON; what is searched by has a column of its own.
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    finished_at REAL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX jobs_by_status ON jobs (status, id);
CREATE INDEX jobs_by_end ON jobs (finished_at);

-- The pictures that an unfinished job starts from.
CREATE TABLE inputs (
    job_id TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    image BLOB NOT NULL,
    mask BLOB
) STRICT;

-- Which job a client's Idempotency-Key stands for, and the digest of the request that it came with.
CREATE TABLE keys (
    client TEXT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    PRIMARY KEY (client, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_by_job ON keys (job_id);
