-- The reference images that came with an unfinished job, in their order.
CREATE TABLE reference_images (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    image BLOB NOT NULL,
    PRIMARY KEY (job_id, place)
) STRICT, WITHOUT ROWID;
