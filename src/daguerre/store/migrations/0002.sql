-- Keys of the API. The key itself is nowhere: of 256 random bits, a plain digest gives nothing away.
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    scopes TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL,
    revoked_at REAL,
    last_used_at REAL
) STRICT;

-- Whose a picture is, for as long as its file is there, which outlives its job.
CREATE TABLE pictures (
    filename TEXT PRIMARY KEY,
    client TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO pictures
    SELECT json_extract(image.value, '$.filename'), coalesce(json_extract(CAST(body AS TEXT), '$.client'), '')
    FROM jobs, json_each(CAST(body AS TEXT), '$.images') AS image;
