//! What the product does, as a user meets it: through its binary, with real
//! processes, a real PostgreSQL and real networks. One sentence, one test.
//!
//! `tests/setup.sh` installs what this needs; some tests need root.

mod bed;

mod bed_works;
mod cli_config;
mod flat;
mod health;
mod keeper_agent;
mod lease_file;
mod lease_postgres;
mod manual;
mod partitions;
mod postgres_failover;
mod service_manager;
mod single_host;
mod terminal;
