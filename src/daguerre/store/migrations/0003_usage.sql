-- What each client's pictures have taken, since its first.
CREATE TABLE usage (
    client TEXT PRIMARY KEY,
    since REAL NOT NULL,
    jobs INTEGER NOT NULL,
    images INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    pixels INTEGER NOT NULL,
    device_seconds REAL NOT NULL
) STRICT, WITHOUT ROWID;
