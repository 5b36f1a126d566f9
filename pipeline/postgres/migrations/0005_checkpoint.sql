-- How far a job of many parts is: changed in the transaction of each part's effects.
ALTER TABLE pipeline.job ADD COLUMN checkpoint jsonb;
