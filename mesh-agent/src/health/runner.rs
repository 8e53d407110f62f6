//! The task that owns all checks.

use std::{collections::HashMap, convert::Infallible, future::pending, sync::Arc};

use tokio::{
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    Board, CheckReport, Dial, Failed, Key,
    plan::{Due, Outcome, Plan},
    probe,
};
use crate::{
    catalog::{Catalog, Snapshot},
    model::HealthCheck,
    resilience::{EndpointState, Health},
    telemetry::{HealthChange, Telemetry},
};

/// Checks at once. Each holds a descriptor for at most its timeout.
pub(crate) const AT_ONCE: usize = 64;

type Checked = Result<(), Failed>;

struct Runner {
    dial: Arc<dyn Dial>,
    telemetry: Arc<Telemetry>,
    board: Arc<Board>,
    plan: Plan,
    /// The run-time states of each endpoint: one for each IP family of virtual addresses that leads to it.
    states: HashMap<Key, Vec<Arc<EndpointState>>>,
    running: JoinSet<Checked>,
    tickets: HashMap<Id, (Key, u64)>,
}

/// Checks what the catalog asks for, until the task is aborted, which ends the checks that are under way.
pub async fn run(
    catalog: Arc<Catalog>,
    dial: Arc<dyn Dial>,
    telemetry: Arc<Telemetry>,
    board: Arc<Board>,
) -> Infallible {
    let mut runner = Runner {
        dial,
        telemetry,
        board,
        plan: Plan::new(AT_ONCE),
        states: HashMap::new(),
        running: JoinSet::new(),
        tickets: HashMap::new(),
    };
    let mut versions = catalog.subscribe();
    loop {
        versions.borrow_and_update();
        runner.follow(&catalog.snapshot());
        while !runner.step(&mut versions).await {}
    }
}

impl Runner {
    /// Waits for the next thing to do and does it. Returns whether the catalog has changed.
    async fn step(&mut self, versions: &mut tokio::sync::watch::Receiver<u64>) -> bool {
        while let Some(due) = self.plan.take(Instant::now()) {
            self.start(due);
        }
        let wake = self.plan.wake_at();
        let waking = async {
            match wake {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            changed = versions.changed() => {
                if changed.is_err() {
                    // The agent is on its way out, and this task with it.
                    pending::<()>().await;
                }
                true
            }
            Some(ended) = self.running.join_next_with_id() => {
                self.finish(ended);
                false
            }
            () = waking => false,
        }
    }

    fn follow(&mut self, snapshot: &Snapshot) {
        let mut wanted: HashMap<Key, HealthCheck> = HashMap::new();
        let mut states: HashMap<Key, Vec<Arc<EndpointState>>> = HashMap::new();
        for service in snapshot.services() {
            let Some(check) = &service.traffic.health_check else {
                continue;
            };
            for (port, upstream) in snapshot.served(service) {
                for endpoint in &upstream.endpoints {
                    let key = Key {
                        service: service.name.clone(),
                        port,
                        endpoint: endpoint.endpoint.address,
                    };
                    let of_key = states.entry(key.clone()).or_default();
                    if !of_key
                        .iter()
                        .any(|known| Arc::ptr_eq(known, &endpoint.state))
                    {
                        of_key.push(Arc::clone(&endpoint.state));
                    }
                    wanted.entry(key).or_insert_with(|| check.clone());
                }
            }
        }
        // The states of an endpoint live on when only the check is taken away.
        for (key, dropped) in &self.states {
            if !wanted.contains_key(key) {
                for state in dropped {
                    state.set_health(Health::Unknown);
                }
            }
        }
        self.board.retain(|key| wanted.contains_key(key));
        self.plan.follow(wanted, Instant::now(), rand::random);
        self.states = states;
        for (key, states) in &self.states {
            let health = self.plan.health(key);
            for state in states {
                state.set_health(health);
            }
        }
    }

    fn start(&mut self, due: Due) {
        let Due { key, check, ticket } = due;
        let (dial, of) = (Arc::clone(&self.dial), key.clone());
        let task = self
            .running
            .spawn(async move { probe::check(&*dial, &of, &check).await });
        self.tickets.insert(task.id(), (key, ticket));
    }

    fn tell(&self, key: &Key, health: Health, failed: Option<&Failed>) {
        let (to, detail) = match (health, failed) {
            (Health::Unhealthy, Some(failed)) => (HealthChange::Unhealthy, failed.to_string()),
            _ => (HealthChange::Healthy, String::new()),
        };
        self.telemetry
            .health(&key.service, key.endpoint, to, &detail);
    }

    fn finish(&mut self, ended: Result<(Id, Checked), JoinError>) {
        let (id, checked) = ended.unwrap_or_else(|error| {
            let failed = Failed::Unknown(format!("the check failed: {error}"));
            (error.id(), Err(failed))
        });
        let Some((key, ticket)) = self.tickets.remove(&id) else {
            return;
        };
        let outcome = match &checked {
            Ok(()) => Outcome::Good,
            Err(Failed::Endpoint(_)) => Outcome::Bad,
            Err(Failed::Unknown(_)) => Outcome::Unknown,
        };
        let failed = checked.err();
        let now = Instant::now();
        let change = self
            .plan
            .finished(&key, ticket, outcome, now, rand::random());
        let Some(states) = self.states.get(&key) else {
            return;
        };
        if let Some(health) = change {
            for state in states {
                state.set_health(health);
            }
            self.tell(&key, health, failed.as_ref());
        } else if let Some(failed) = &failed {
            tracing::debug!(
                service = %key.service, port = key.port, endpoint = %key.endpoint, %failed,
                "health check failed"
            );
        }
        let report = CheckReport {
            at: now,
            failed,
            health: self.plan.health(&key),
        };
        self.board.write(key, report);
    }
}
