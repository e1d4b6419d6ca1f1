//! Every statement, and how a row becomes a record.
//!
//! One rule for all of them: one autocommit statement, whole in itself, no session
//! state, every table with its schema. So they work through a pooler in transaction
//! mode, and an abandoned one holds nothing after it ran. Never named: a prepared
//! statement would belong to a session.

use crate::config::Postgres;
use crate::core::{Generation, Handover, Holder, Member, Record, Seen, Sighting};
use postgres::Row;
use serde::Deserialize;
use std::time::Duration;

/// Our tables, as they are named in every statement.
pub(super) const TABLES: [&str; 3] = ["lease", "member", "history"];

/// A name for use in a statement.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text for use in a statement.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The channel on which claims and releases of a service are told. A channel's name
/// may have 63 bytes: a longer service is told by its hash.
pub(super) fn channel(service: &str) -> String {
    let plain = format!("locum_{service}");
    if plain.len() <= 63 {
        return plain;
    }
    // FNV-1a: all hosts must agree on it, over all versions.
    let hash = service.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("locum_{hash:016x}")
}

/// Facts of a server that decide whether it may be used.
pub(super) const HELLO: &str = "\
SELECT pg_is_in_recovery() AS recovery,
  current_setting('transaction_read_only') = 'on' AS read_only,
  (SELECT system_identifier::text FROM pg_control_system()) AS system,
  CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id::int8 FROM pg_control_checkpoint())
       ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8 END AS timeline,
  current_setting('synchronous_standby_names') AS sync_names,
  coalesce(current_setting('locum.direct', true), '') AS direct,
  current_setting('server_version') AS version,
  extract(epoch FROM pg_postmaster_start_time())::text AS started,
  (SELECT s.version FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid() AND s.ssl) AS tls";

/// The generation at this moment. `pg_control_checkpoint()` would still tell the old
/// timeline right after a promotion; the name of the WAL file in use does not.
const PRESENT: &str = "\
present AS MATERIALIZED (
  SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system,
         ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8 AS timeline
)";

/// The columns of the record under alias `k`, and the generation under alias `p`.
const RECORD: &str = "\
p.system AS present_system, p.timeline AS present_timeline,
  k.service IS NOT NULL AS found, k.format, k.epoch, k.token, k.seq, k.holder_node, k.holder_instance, k.previous,
  k.ttl_ms, k.renew_ms, k.generation_system, k.generation_timeline,
  k.unfenced::text AS unfenced, k.handover::text AS handover, k.why,
  extract(epoch FROM clock_timestamp() - k.written_at)::float8 AS age";

/// Settings of one statement, gone when it ends; `client_min_messages`, so that no
/// default of a role or database hides the warning of a cancelled synchronous commit.
fn settings(durability: &str, lock_timeout: Duration) -> String {
    format!(
        "settings AS MATERIALIZED (
  SELECT set_config('synchronous_commit', '{durability}', true) AS durability,
         set_config('lock_timeout', '{}ms', true) AS lock_timeout,
         set_config('client_min_messages', 'warning', true) AS messages
)",
        lock_timeout.as_millis().max(1)
    )
}

/// Upsert of a member row, from `$first` on: node, instance, host, version, role, health.
fn member(schema: &str, first: usize, from: &str) -> String {
    let [node, instance, host, version, role, health] = std::array::from_fn(|i| format!("${}", first + i));
    format!(
        "said AS (
  INSERT INTO {schema}.member AS m (service, node, instance, host, version, role, health, heard_at)
  SELECT $1, {node}, {instance}, {host}, {version}, {role}, {health}, clock_timestamp() FROM {from}
  ON CONFLICT (service, node) DO UPDATE SET instance = excluded.instance, host = excluded.host,
    version = excluded.version, role = excluded.role, health = excluded.health, heard_at = excluded.heard_at
)"
    )
}

/// Every member but `$except`, as JSON in one column.
fn members(schema: &str, except: &str) -> String {
    format!(
        "(SELECT json_agg(json_build_object('node', o.node, 'instance', o.instance, 'host', o.host,
      'version', o.version, 'role', o.role, 'health', o.health,
      'age', extract(epoch FROM clock_timestamp() - o.heard_at)) ORDER BY o.node)
   FROM {schema}.member o WHERE o.service = $1 AND o.node <> {except})::text AS members"
    )
}

/// Tells of this node and reads everything. Parameters: service, then the member.
/// It does not wait for a standby: nothing that it writes is worth it.
pub(super) fn look(pg: &Postgres, lock_timeout: Duration) -> String {
    let schema = quoted(&pg.schema);
    format!(
        "WITH {}, {}, {}
SELECT {RECORD},
  {}
FROM present p LEFT JOIN {schema}.lease k ON k.service = $1",
        settings("off", lock_timeout),
        member(&schema, 2, "settings"),
        PRESENT,
        members(&schema, "$2")
    )
}

/// Reads everything and writes nothing, so that a standby server can answer too.
/// Parameter: service. A column `since` comes from the history.
pub(super) fn overview(pg: &Postgres) -> String {
    let schema = quoted(&pg.schema);
    format!(
        "WITH present AS (SELECT ''::text AS system, 0::int8 AS timeline)
SELECT {RECORD},
  {},
  (SELECT extract(epoch FROM clock_timestamp() - h.at)::float8 FROM {schema}.history h
   WHERE h.service = $1 AND h.epoch = k.epoch AND h.what IN ('claim', 'takeover')
   ORDER BY h.id DESC LIMIT 1) AS since
FROM present p LEFT JOIN {schema}.lease k ON k.service = $1",
        members(&schema, "''")
    )
}

/// Compare and swap. The row is locked before it is compared: whoever waited for the
/// lock sees the row as the other one left it (READ COMMITTED looks again after the
/// wait), so the record that is compared, replaced or handed back is the present one.
///
/// Parameters: 1 service; 2–5 the version seen (system, timeline, epoch, seq); 6–18 the
/// next record (format, system, timeline, epoch, token, seq, the holder's node and
/// instance, ttl and renew in ms, unfenced, handover, why); 19–24 the entry (what, node,
/// epoch, token, why) and its channel; 25–30 the member; 31 the next record's previous node.
pub(super) fn swap(pg: &Postgres, lock_timeout: Duration) -> String {
    let schema = quoted(&pg.schema);
    format!(
        "WITH {}, {PRESENT},
locked AS MATERIALIZED (
  SELECT l.* FROM {schema}.lease l, settings s
  WHERE l.service = $1 AND s.durability = 'on' FOR UPDATE OF l
), written AS (
  UPDATE {schema}.lease l SET format = $6, generation_system = $7, generation_timeline = $8,
    epoch = $9, token = $10, seq = $11, holder_node = $12, holder_instance = $13, ttl_ms = $14, renew_ms = $15,
    unfenced = $16::text::jsonb, handover = $17::text::jsonb, why = $18, previous = $31, written_at = clock_timestamp(),
    expires_at = CASE WHEN $12 IS NULL THEN NULL ELSE clock_timestamp() + $14 * interval '1 millisecond' END
  FROM locked k, present p
  WHERE l.service = k.service
    AND k.generation_system IS NOT DISTINCT FROM $2 AND k.generation_timeline IS NOT DISTINCT FROM $3
    AND k.epoch = $4 AND k.seq = $5 AND k.format <= $6
    AND p.system = $7 AND p.timeline = $8
  RETURNING l.service
), {}, told AS (
  INSERT INTO {schema}.history (service, at, what, node, epoch, token, why)
  SELECT $1, clock_timestamp(), $19, $20, $21, $22, $23 FROM written WHERE $19 IS NOT NULL
)
SELECT EXISTS (SELECT FROM written) AS done,
  (SELECT count(pg_notify($24, '')) FROM written WHERE $19 IS NOT NULL) AS notified,
  {RECORD}
FROM present p LEFT JOIN locked k ON true",
        settings("on", lock_timeout),
        member(&schema, 25, "written")
    )
}

/// Makes the record of a service that has none. Epoch and token go on from the history:
/// a record that somebody deleted must not start them again. Parameters: service,
/// format, seq, ttl and renew in ms, why. One row if it was made just now.
pub(super) fn make_record(pg: &Postgres) -> String {
    let schema = quoted(&pg.schema);
    format!(
        "WITH {}
INSERT INTO {schema}.lease (service, format, epoch, token, seq, ttl_ms, renew_ms, previous, unfenced, why, written_at)
SELECT $1, $2, coalesce(h.epoch, 0), coalesce(h.token, 0), $3, $4, $5, '', '[]', $6, clock_timestamp()
FROM settings, (SELECT max(epoch) AS epoch, max(token) AS token FROM {schema}.history WHERE service = $1) h
WHERE durability = 'on'
ON CONFLICT (service) DO NOTHING RETURNING service",
        settings("on", Duration::from_secs(5)),
    )
}

/// What is there of our tables, and what the role may do with it. Parameter: schema.
/// Reads catalogues only: naming a table that may not be used would be an error.
pub(super) const RIGHTS: &str = "\
SELECT t.name, c.oid IS NOT NULL AS present, n.oid IS NOT NULL AS schema_present,
  coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS usage,
  coalesce(has_table_privilege(c.oid, 'SELECT'), false) AS can_select,
  coalesce(has_table_privilege(c.oid, 'INSERT'), false) AS can_insert,
  coalesce(has_table_privilege(c.oid, 'UPDATE'), false) AS can_update
FROM unnest(ARRAY['lease', 'member', 'history']) WITH ORDINALITY AS t(name, nr)
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = $1
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.name
ORDER BY t.nr";

/// The statement that makes the schema.
pub(super) fn make_schema(pg: &Postgres) -> String {
    format!("CREATE SCHEMA IF NOT EXISTS {};", quoted(&pg.schema))
}

/// The statements that make the tables. Only the lease is updated in place for years:
/// room in its page and no index but the key keep every update from growing the table.
pub(super) fn make_tables(pg: &Postgres) -> String {
    let schema = quoted(&pg.schema);
    format!(
        "CREATE TABLE IF NOT EXISTS {schema}.lease (
  service text PRIMARY KEY,
  format int NOT NULL,
  generation_system text,
  generation_timeline bigint,
  epoch bigint NOT NULL,
  token bigint NOT NULL,
  seq bigint NOT NULL,
  holder_node text,
  holder_instance text,
  previous text NOT NULL,
  ttl_ms double precision NOT NULL,
  renew_ms double precision NOT NULL,
  unfenced jsonb NOT NULL,
  handover jsonb,
  why text NOT NULL,
  written_at timestamptz NOT NULL,
  expires_at timestamptz,
  CHECK ((holder_node IS NULL) = (holder_instance IS NULL)),
  CHECK ((generation_system IS NULL) = (generation_timeline IS NULL))
) WITH (fillfactor = 20);
COMMENT ON TABLE {schema}.lease IS 'locum: who may run each service; never delete a row, its epoch and token must not start again';
COMMENT ON COLUMN {schema}.lease.expires_at IS 'for people only: locum never compares clocks';
CREATE TABLE IF NOT EXISTS {schema}.member (
  service text NOT NULL,
  node text NOT NULL,
  instance text NOT NULL,
  host text NOT NULL,
  version text NOT NULL,
  role text NOT NULL,
  health text NOT NULL,
  heard_at timestamptz NOT NULL,
  PRIMARY KEY (service, node)
) WITH (fillfactor = 20);
COMMENT ON TABLE {schema}.member IS 'locum: the nodes of each service, as they were last heard';
CREATE TABLE IF NOT EXISTS {schema}.history (
  id bigint GENERATED ALWAYS AS IDENTITY,
  service text NOT NULL,
  at timestamptz NOT NULL,
  what text NOT NULL,
  node text NOT NULL,
  epoch bigint NOT NULL,
  token bigint NOT NULL,
  why text NOT NULL,
  PRIMARY KEY (service, id)
);
COMMENT ON TABLE {schema}.history IS 'locum: every claim, takeover and release';
"
    )
}

/// The rights that a role needs at run time, one statement each.
pub(super) fn grants(pg: &Postgres) -> [String; 3] {
    let (schema, role) = (quoted(&pg.schema), quoted(&pg.user));
    [
        format!("GRANT USAGE ON SCHEMA {schema} TO {role};"),
        format!("GRANT SELECT, INSERT, UPDATE ON {schema}.lease, {schema}.member TO {role};"),
        format!("GRANT SELECT, INSERT ON {schema}.history TO {role};"),
    ]
}

/// The right to make the schema oneself, instead.
pub(super) fn grant_create(pg: &Postgres) -> String {
    format!("GRANT CREATE ON DATABASE {} TO {};", quoted(&pg.database), quoted(&pg.user))
}

/// Waits until nobody else makes tables: `IF NOT EXISTS` alone fails when ten start at once.
pub(super) fn one_at_a_time(pg: &Postgres) -> String {
    format!("SELECT pg_advisory_xact_lock(hashtext({}));", literal(&format!("locum schema {}", pg.schema)))
}

/// Milliseconds as the tables hold them: exact to the nanosecond for fifty days and more.
pub(super) fn milliseconds(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn duration(ms: f64) -> Result<Duration, String> {
    // The nearest nanosecond: a double carries 53 bits, and a day has 46.
    let ns = (ms * 1e6).round();
    if ns.is_finite() && (0.0..1e19).contains(&ns) {
        Ok(Duration::from_nanos(ns as u64))
    } else {
        Err(format!("{ms} ms is no duration"))
    }
}

/// A count, as the tables hold it.
pub(super) fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What a row with the columns of [`RECORD`] shows.
///
/// # Errors
/// A record that this program cannot understand, of a later layout for example.
pub(super) fn sighting(row: &Row) -> Result<Sighting, String> {
    let text = |e: postgres::Error| format!("cannot read the answer: {}", super::trouble::tell(&e));
    let generation = Generation {
        system: row.try_get("present_system").map_err(text)?,
        timeline: timeline(row.try_get("present_timeline").map_err(text)?)?,
    };
    let found: bool = row.try_get("found").map_err(text)?;
    if !found {
        return Ok(Sighting { record: None, generation, age: None });
    }
    let age: f64 = row.try_get("age").map_err(text)?;
    Ok(Sighting { record: Some(record(row)?), generation, age: Duration::try_from_secs_f64(age).ok() })
}

fn record(row: &Row) -> Result<Record, String> {
    let text = |e: postgres::Error| format!("cannot read the record: {}", super::trouble::tell(&e));
    let json = |e: serde_json::Error| format!("cannot read the record: {e}");
    let format: i32 = row.try_get("format").map_err(text)?;
    let format = u32::try_from(format).map_err(|_| format!("the record has format {format}"))?;
    if format > Record::FORMAT {
        return Err(later_format(format));
    }
    let count = |column: &str| -> Result<u64, String> {
        let n: i64 = row.try_get(column).map_err(text)?;
        u64::try_from(n).map_err(|_| format!("the record has {column} {n}"))
    };
    let node: Option<String> = row.try_get("holder_node").map_err(text)?;
    let instance: Option<String> = row.try_get("holder_instance").map_err(text)?;
    let system: Option<String> = row.try_get("generation_system").map_err(text)?;
    let line: Option<i64> = row.try_get("generation_timeline").map_err(text)?;
    let unfenced: String = row.try_get("unfenced").map_err(text)?;
    let handover: Option<String> = row.try_get("handover").map_err(text)?;
    Ok(Record {
        format,
        epoch: count("epoch")?,
        token: count("token")?,
        seq: count("seq")?,
        holder: node.zip(instance).map(|(node, instance)| Holder { node, instance }),
        previous: row.try_get("previous").map_err(text)?,
        ttl: duration(row.try_get("ttl_ms").map_err(text)?)?,
        renew: duration(row.try_get("renew_ms").map_err(text)?)?,
        generation: match system.zip(line) {
            Some((system, line)) => Some(Generation { system, timeline: timeline(line)? }),
            None => None,
        },
        unfenced: serde_json::from_str::<Vec<Holder>>(&unfenced).map_err(json)?,
        handover: handover.map(|h| serde_json::from_str::<Handover>(&h)).transpose().map_err(json)?,
        why: row.try_get("why").map_err(text)?,
    })
}

fn later_format(format: u32) -> String {
    format!(
        "the record has format {format}, and this program knows none above {}: install the version of locum that the other hosts run",
        Record::FORMAT
    )
}

pub(super) fn timeline(n: i64) -> Result<u32, String> {
    u32::try_from(n).map_err(|_| format!("{n} is no timeline"))
}

#[derive(Deserialize)]
struct Row1 {
    #[serde(flatten)]
    member: Member,
    age: f64,
}

/// The members in a column of JSON; one that a later version wrote in words that we
/// do not know is left out, because members are told to people and decide nothing.
pub(super) fn members_of(json: Option<&str>) -> Vec<Seen> {
    let rows: Vec<serde_json::Value> = json.and_then(|j| serde_json::from_str(j).ok()).unwrap_or_default();
    rows.into_iter()
        .filter_map(|row| serde_json::from_value::<Row1>(row).ok())
        .map(|row| Seen { member: row.member, age: Duration::try_from_secs_f64(row.age).unwrap_or_default() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("a'b"), "'a''b'");
    }

    #[test]
    fn a_channel_name_fits() {
        assert_eq!(channel("shop"), "locum_shop");
        let long = channel(&"x".repeat(200));
        assert!(long.len() <= 63 && long != channel(&"x".repeat(201)));
    }

    #[test]
    fn durations_come_back_exactly() {
        for ns in [0, 1, 999, 500_000_000, 19_999_999_999, 20_000_000_001, 86_400_123_456_789] {
            let d = Duration::from_nanos(ns);
            assert_eq!(duration(milliseconds(d)), Ok(d));
        }
        assert!(duration(-1.0).is_err() && duration(f64::NAN).is_err());
    }

    #[test]
    fn members_in_unknown_words_are_left_out() {
        let json = r#"[{"node":"a","instance":"i","host":"h","version":"1","role":"active","health":"healthy","age":1.5},
                       {"node":"b","instance":"i","host":"h","version":"9","role":"observer","health":"healthy","age":1}]"#;
        let seen = members_of(Some(json));
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].member.node.as_str(), seen[0].age), ("a", Duration::from_millis(1500)));
        assert!(members_of(None).is_empty());
    }
}
