#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "shell: the command line"
)]
//! `firekeep`: parses the command line, reads the configuration, runs a command, and says how it went.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use firekeep::cli::{
    BucketCommand, Cli, Command, ConfigCommand, KeyCommand, PlcCommand, RestoreCommand, RunArgs, StateCommand,
};
use firekeep::commands::{self, recall};
use firekeep::config::{Config, ConfigError, Layers, LogFormat};
use firekeep::daemon::{self, DaemonError, exit};

/// For RocksDB's memory too: the system's own keeps what many threads gave back, and takes twice the time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(DaemonError { code, text }) => {
            eprintln!("firekeep: {text}");
            ExitCode::from(code)
        }
    }
}

fn dispatch(cli: Cli) -> Result<u8, DaemonError> {
    let (json, file) = (cli.json, cli.config);
    if matches!(
        &cli.command,
        Command::Restore(_) | Command::Key(_) | Command::Plc(_)
    ) {
        leave_no_core();
    }
    match cli.command {
        Command::Run(args) => {
            let config = load(file, &args.settings())?.0;
            start_log(&config);
            block_on(daemon::run(config, args.said())).map(|()| 0)
        }
        Command::Snapshot(args) => {
            let config = load(file, &args.settings())?.0;
            block_on(commands::snapshot(&config, json))
        }
        Command::Status(args) => {
            let config = load(file, &args.common.settings())?.0;
            block_on(commands::status::status(&config, args.watch, json))
        }
        Command::Accounts(args) => {
            let config = load(file, &args.settings())?.0;
            block_on(commands::accounts(&config, json))
        }
        Command::Alarms(args) => {
            let config = load(file, &args.common.settings())?.0;
            block_on(commands::alarms(&config, args.command, json))
        }
        Command::Diff(args) => {
            let config = load(file, &args.source.settings())?.0;
            if args.live {
                return block_on(commands::diff(&config, &args.did, json));
            }
            block_on(recall::diff(&config, &args))?.print(json)
        }
        Command::History(args) => {
            let config = load(file, &args.source.settings())?.0;
            block_on(recall::history(&config, &args))?.print(json)
        }
        Command::Ls(args) => {
            let config = load(file, &args.source.settings())?.0;
            block_on(recall::ls(&config, &args))?.print(json)
        }
        Command::Cat(args) => {
            let config = load(file, &args.source.settings())?.0;
            // Bytes are bytes, whatever else is asked for.
            block_on(recall::cat(&config, &args))?.print(json && !args.raw)
        }
        Command::Export(args) => {
            let config = load(file, &args.source.settings())?.0;
            let answer = block_on(recall::export(&config, &args, &mut std::io::stdout()))?;
            // Where stdout has the repository, it has nothing else.
            answer.print(json && args.output.as_deref() != Some("-"))
        }
        Command::Restore(command) => restore(file, command, json),
        Command::State(command) => state(file, command, json),
        Command::Key(command) => key(command, json),
        Command::Plc(command) => plc(file, command, json),
        Command::AdminPassword { output } => commands::keys::admin_password(&output),
        Command::Health(args) => block_on(commands::health(&load(file, &args.settings())?.0)),
        Command::Verify(args) => {
            let config = load(file, &args.common.settings())?.0;
            block_on(commands::verify::verify(&config, &args, json))
        }
        Command::Drill(args) => {
            let config = load(file, &args.settings())?.0;
            block_on(commands::drill::drill(&config, &args, json))
        }
        Command::Prune(args) => {
            let config = load(file, &args.settings())?.0;
            match args.dry_run {
                true => block_on(commands::prune::dry_run(&config, json)),
                false => block_on(commands::forget::prune(&config, json)),
            }
        }
        Command::Forget(args) => {
            let config = load(file, &args.settings())?.0;
            block_on(commands::forget::forget(&config, &args, json))
        }
        Command::Bucket(BucketCommand::Probe(args)) => {
            let config = load(file, &args.settings())?.0;
            block_on(commands::bucket::probe(&config, json))
        }
        Command::Config(command) => configuration(file, command, json),
        Command::Init(args) => commands::setup::init(&args),
        Command::Completions { shell } => commands::setup::completions(shell),
        Command::Man { folder } => commands::setup::man(&folder),
    }
}

fn configuration(file: Option<PathBuf>, command: ConfigCommand, json: bool) -> Result<u8, DaemonError> {
    match command {
        ConfigCommand::Example => print(&firekeep::config::keys::example()),
        ConfigCommand::Print(args) => print_config(file, &args),
        ConfigCommand::Check(args) => {
            let config = load(file, &args.run.settings())?.0;
            block_on(commands::check::check(&config, args.offline, json))
        }
    }
}

fn key(command: KeyCommand, json: bool) -> Result<u8, DaemonError> {
    match command {
        KeyCommand::Generate { curve, output } => commands::keys::generate(curve, &output, json),
        KeyCommand::Show { file } => commands::keys::show(&file, json),
    }
}

fn restore(file: Option<PathBuf>, command: RestoreCommand, json: bool) -> Result<u8, DaemonError> {
    match command {
        RestoreCommand::Account(args) => {
            let config = load(file, &args.settings())?.0;
            block_on(commands::restore::account(&config, &args, json))
        }
        RestoreCommand::Pds(args) => {
            let config = load(file, &args.settings())?.0;
            block_on(commands::restore::pds(&config, &args, json))
        }
        RestoreCommand::Records(args) => {
            let config = load(file, &args.living.settings())?.0;
            block_on(commands::restore::records(&config, &args, json))
        }
        RestoreCommand::Blobs(args) => {
            let config = load(file, &args.living.settings())?.0;
            block_on(commands::restore::blobs(&config, &args, json))
        }
    }
}

fn state(file: Option<PathBuf>, command: StateCommand, json: bool) -> Result<u8, DaemonError> {
    match command {
        StateCommand::Backup(args) => commands::state::backup(&args, json),
        StateCommand::List(args) => {
            let config = load(file, &args.source.settings())?.0;
            block_on(commands::state::list(&config, &args, json))
        }
        StateCommand::Verify(args) => {
            let config = load(file, &args.source.settings())?.0;
            block_on(commands::state::verify(&config, &args, json))
        }
        StateCommand::Extract(args) => {
            let config = load(file, &args.open.source.settings())?.0;
            block_on(commands::state::extract(&config, &args, json))
        }
    }
}

/// What holds keys and passwords leaves no copy of its memory behind when it crashes, and no other process of this user
/// may read it.
fn leave_no_core() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = setrlimit(Resource::Core, none);
    if let Err(error) = limited.and(set_dumpable_behavior(DumpableBehavior::NotDumpable)) {
        eprintln!("firekeep: note: this system may write a core file when a program crashes ({error})");
    }
}

fn plc(file: Option<PathBuf>, command: PlcCommand, json: bool) -> Result<u8, DaemonError> {
    let directory = match &command {
        PlcCommand::Log(args) | PlcCommand::Verify(args) => &args.directory,
        PlcCommand::Watch(args) => &args.directory,
        PlcCommand::Undo(args) => &args.directory,
        PlcCommand::Update(args) => &args.directory,
        PlcCommand::AddKey(args) => &args.directory,
    };
    let config = load(file, &directory.settings())?.0;
    match command {
        PlcCommand::Log(args) => block_on(commands::keys::plc_log(&config, &args.did, true, json)),
        PlcCommand::Verify(args) => block_on(commands::keys::plc_log(&config, &args.did, false, json)),
        PlcCommand::Watch(args) => block_on(commands::plc::watch(&config, &args, json)),
        PlcCommand::Undo(args) => block_on(commands::plc::undo(&config, &args, json)),
        PlcCommand::Update(args) => block_on(commands::plc::update(&config, &args, json)),
        PlcCommand::AddKey(args) => block_on(commands::plc::add_key(&config, &args, json)),
    }
}

fn print_config(file: Option<PathBuf>, args: &RunArgs) -> Result<u8, DaemonError> {
    let (_, layers) = load(file, &args.settings())?;
    print(&layers.shown())
}

fn print(text: &str) -> Result<u8, DaemonError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(0),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(0),
        Err(error) => Err(failed(format!("cannot write to stdout: {error}"))),
    }
}

fn failed(text: String) -> DaemonError {
    DaemonError {
        code: exit::FAILED,
        text,
    }
}

/// Reads the file (named, or `firekeep.toml` here if it is there), the environment and the flags.
fn load(file: Option<PathBuf>, flags: &[(&'static str, String)]) -> Result<(Config, Layers), DaemonError> {
    let bad = |error: ConfigError| DaemonError {
        code: exit::CONFIG,
        text: error.to_string(),
    };
    let mut layers = Layers::default();
    let default = PathBuf::from("firekeep.toml");
    let path = file.or_else(|| default.is_file().then_some(default));
    if let Some(path) = path {
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|error| {
            bad(ConfigError::new(format!(
                "cannot read {}: {error}",
                path.display()
            )))
        })?;
        layers.add_file(&path, &text).map_err(bad)?;
    }
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    layers.add_env(variables).map_err(bad)?;
    for (name, value) in flags {
        layers.add_flag(name, value).map_err(bad)?;
    }
    let cwd = std::env::current_dir().map_err(|error| failed(format!("this folder is gone: {error}")))?;
    let config = Config::check(&layers, &cwd).map_err(bad)?;
    Ok((config, layers))
}

fn start_log(config: &Config) {
    let text = match config.log_format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log_level);
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    if text {
        log.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .init();
    } else {
        log.json().flatten_event(true).init();
    }
}

fn block_on<T>(future: impl Future<Output = Result<T, DaemonError>>) -> Result<T, DaemonError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(format!("cannot start: {error}")))?;
    let result = runtime.block_on(future);
    // Blocking work that was given up must not hold the end up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}
