//! Sealed records: variables of one job, in a MUNGE credential that only the job owner can open.
