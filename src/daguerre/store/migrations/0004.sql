-- Webhooks that are not delivered yet: written with the job's end, in one transaction.
CREATE TABLE deliveries (
    job_id TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    attempts INTEGER NOT NULL,
    due_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
