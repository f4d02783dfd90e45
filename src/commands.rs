//! `/commands/*` on the HTTP port: how a coordination server and its cell are, as JSON under the names of ZooKeeper's
//! AdminServer, and the operator's wishes for the cell. `loggos coordinator status` and its like ask here.
//!
//! Questions are GET, wishes are POST. Called by `roles`.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::{get, post};
use loggos_coordinator::{CellStatus, Operator};
use serde::Deserialize;
use serde_json::{Map, Value, json};

type Answer = (StatusCode, Json<Value>);

/// Which servers a wish is about.
#[derive(Deserialize)]
struct Servers {
    /// Numbers with commas in between.
    #[serde(default)]
    servers: String,
}

/// The routes of a server.
pub fn router(operator: Operator) -> Router {
    Router::new()
        .route("/commands/{name}", get(question))
        .route("/commands/voters", post(set_voters))
        .route("/commands/remove", post(remove))
        .route("/commands/transfer", post(transfer))
        .with_state(operator)
}

async fn question(State(operator): State<Operator>, Path(name): Path<String>) -> Answer {
    let Some(status) = operator.status().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(failed(&name, "the coordination server has stopped")));
    };
    let told = match name.as_str() {
        "ruok" => json!({}),
        "status" => json!(status),
        "leader" => leader(&status),
        "configuration" => json!({ "cell": status.cell, "members": status.members }),
        "voting_view" => voting_view(&status),
        "srvr" | "stat" | "monitor" => statistics(&operator, &status).await,
        _ => return (StatusCode::NOT_FOUND, Json(failed(&name, "no such command"))),
    };
    (StatusCode::OK, Json(answered(&name, told)))
}

fn leader(status: &CellStatus) -> Value {
    json!({
        "is_leader": status.leader == status.server,
        "leader_id": status.leader,
        "leader_client": status.leader_client,
        "ballot": status.ballot,
        "lease_left_ms": status.lease_left_ms,
    })
}

fn voting_view(status: &CellStatus) -> Value {
    let voters = status.members.iter().filter(|member| member.role != "learner").map(|member| {
        let about = json!({
            "peer_address": member.peer,
            "bulk_port": member.bulk_port,
            "client_address": member.client,
            "role": member.role,
        });
        (member.server.to_string(), about)
    });
    json!({ "current_config": Map::from_iter(voters) })
}

/// The pairs of `mntr`, without their prefix.
async fn statistics(operator: &Operator, status: &CellStatus) -> Value {
    let text = operator.monitor().await.unwrap_or_default();
    let mut pairs: Map<String, Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("zk_")?.split_once('\t'))
        .map(|(key, value)| {
            (key.to_owned(), value.parse::<i64>().map_or_else(|_| json!(value), |n| json!(n)))
        })
        .collect();
    pairs.insert("mode".to_owned(), json!(status.mode));
    pairs.insert("zxid".to_owned(), json!(status.zxid));
    Value::Object(pairs)
}

async fn set_voters(State(operator): State<Operator>, Query(query): Query<Servers>) -> Answer {
    match numbers(&query.servers) {
        Ok(ids) if !ids.is_empty() => outcome("voters", operator.set_voters(ids).await),
        Ok(_) => refused("voters", "name the servers that shall vote: ?servers=1,2,3"),
        Err(why) => refused("voters", &why),
    }
}

async fn remove(State(operator): State<Operator>, Query(query): Query<Servers>) -> Answer {
    match numbers(&query.servers) {
        Ok(ids) if !ids.is_empty() => outcome("remove", operator.remove(ids).await),
        Ok(_) => refused("remove", "name the servers that shall go: ?servers=4"),
        Err(why) => refused("remove", &why),
    }
}

async fn transfer(State(operator): State<Operator>, Query(query): Query<Servers>) -> Answer {
    match numbers(&query.servers) {
        Ok(ids) if ids.len() <= 1 => outcome("transfer", operator.transfer(ids.first().copied()).await),
        Ok(_) => refused("transfer", "one server leads: ?servers=2, or nothing for the best one"),
        Err(why) => refused("transfer", &why),
    }
}

fn numbers(text: &str) -> Result<Vec<u16>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().map_err(|_| format!("'{part}' is no server's number"))).collect()
}

fn outcome(name: &str, outcome: Result<(), String>) -> Answer {
    match outcome {
        Ok(()) => (StatusCode::OK, Json(answered(name, json!({})))),
        Err(why) => (StatusCode::CONFLICT, Json(failed(name, &why))),
    }
}

fn refused(name: &str, why: &str) -> Answer {
    (StatusCode::BAD_REQUEST, Json(failed(name, why)))
}

fn answered(name: &str, told: Value) -> Value {
    let mut all = json!({ "command": name, "error": null });
    if let (Value::Object(all), Value::Object(told)) = (&mut all, told) {
        all.extend(told);
    }
    all
}

fn failed(name: &str, why: &str) -> Value {
    json!({ "command": name, "error": why })
}
