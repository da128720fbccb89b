#![allow(clippy::disallowed_methods, reason = "shell: a server")]
//! A host made up on this machine, for load: serves `subscribeRepos`, the sync methods and a PLC directory for many
//! accounts with realistic records, reproducible from a seed. Any consumer can be pointed at it.
//!
//! `loadgen --accounts 1000 --records 200 --events 100000 --rate 500`, then
//! `firekeep run --dev-mode --host http://127.0.0.1:2600 --plc-url http://127.0.0.1:2600`.
//!
//! Frames are made before any is sent. Without `--events` nothing is sent until it is asked for:
//! `POST /load/make?events=N` makes some more, `POST /load/send?rate=R` sends what is made (without a rate at once),
//! `GET /load` tells how far it is.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use firekeep::clock::Clock;
use firekeep::sim::load::serve::{LoadServer, url};
use firekeep::sim::load::{BlockOrder, LoadHost, LoadPlan};
use firekeep::types::Timestamp;
use tokio::net::TcpListener;

const USAGE: &str =
    "usage: loadgen [--listen 127.0.0.1:2600] [--url URL] [--seed 1] [--accounts 100] [--records 200]
               [--even] [--p256 PERCENT] [--pictures] [--streamable] [--events N] [--rate PER_SECOND]
               [--seconds 3600] [--until MICROSECONDS]";

struct Settings {
    listen: SocketAddr,
    url: Option<String>,
    order: BlockOrder,
    plan: LoadPlan,
    events: u64,
    rate: Option<u64>,
    /// It ends by itself after this long.
    seconds: u64,
}

fn main() -> ExitCode {
    let Some(settings) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match runtime.block_on(run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Settings> {
    // A day ago: whoever reads it may refuse what lies in the future.
    let until = Clock::system().now().minus(Duration::from_secs(24 * 3600));
    let mut settings = Settings {
        listen: ([127, 0, 0, 1], 2600).into(),
        url: None,
        order: BlockOrder::Hashed,
        plan: LoadPlan {
            seed: 1,
            url: String::new(),
            accounts: 100,
            records: 200,
            even: false,
            p256_percent: 0,
            pictures: false,
            until,
        },
        events: 0,
        rate: None,
        seconds: 3600,
    };
    while let Some(name) = arguments.next() {
        let plan = &mut settings.plan;
        match name.as_str() {
            "--even" => plan.even = true,
            "--pictures" => plan.pictures = true,
            "--streamable" => settings.order = BlockOrder::Streamable,
            _ => {
                let value = arguments.next()?;
                let number = value.parse();
                match name.as_str() {
                    "--listen" => settings.listen = value.parse().ok()?,
                    "--url" => settings.url = Some(value),
                    "--seed" => plan.seed = number.ok()?,
                    "--accounts" => plan.accounts = number.ok()?,
                    "--records" => plan.records = number.ok()?,
                    "--p256" => plan.p256_percent = number.ok()?,
                    "--until" => plan.until = Timestamp::from_micros(number.ok()?),
                    "--events" => settings.events = number.ok()?,
                    "--rate" => settings.rate = Some(number.ok()?),
                    "--seconds" => settings.seconds = number.ok()?,
                    _ => return None,
                }
            }
        }
    }
    Some(settings)
}

async fn run(mut settings: Settings) -> std::io::Result<()> {
    let listener = TcpListener::bind(settings.listen).await?;
    settings.plan.url = match settings.url {
        Some(given) => given,
        None => url(listener.local_addr()?),
    };
    let host = LoadHost::make(&settings.plan);
    let server = LoadServer::new(host, settings.plan.seed, settings.order);
    server.make(settings.events).await;
    println!("{} {}", settings.plan.url, server.told());
    let (serving, sending) = (server.clone().serve(listener), server.send(settings.rate));
    let bounded = tokio::time::timeout(Duration::from_secs(settings.seconds), async {
        tokio::join!(serving, sending).0
    });
    match bounded.await {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(()),
    }
}
