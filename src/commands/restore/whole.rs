#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "shell: files, the network, the terminal"
)]
//! `firekeep restore pds`: every account of a host, one by one as `restore account` does it, a few at a time.

mod report;
mod run;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{Found, directory, endpoint, failed, file_name, read_secret, secrets, usage};
use crate::archive::accounts::KnownHost;
use crate::archive::reader::{ArchiveReader, ReadError};
use crate::cli::{RestoreAccountArgs, RestorePdsArgs};
use crate::config::Config;
use crate::daemon::{DaemonError, exit};
use crate::restore::RestoreError;
use crate::restore::admin::Admin;
use crate::restore::book::{Book, Head};
use crate::restore::directory::Directory;
use crate::restore::ledger;
use crate::restore::passwords::Passwords;
use crate::restore::pds::Pds;
use crate::restore::plan::{Ending, HandleOwner, ServerFacts};
use crate::restore::secret::UserSecret;
use crate::restore::whole::{
    Asked, Known, Points, Row, Skipped, Treatment, below, placeholder_email, read_table,
};
use crate::types::{Did, DidMethod, HostName};

/// Identities that are looked up at the same time.
const LOOKUPS: usize = 8;

/// Everything that the restore of each account needs.
struct Whole<'a> {
    config: &'a Config,
    args: &'a RestorePdsArgs,
    host: KnownHost,
    /// Where the archive is.
    place: String,
    to: String,
    server: ServerFacts,
    directory: Directory,
    rotation: Arc<UserSecret>,
    admin: Option<Admin>,
    table: BTreeMap<Did, Row>,
    folder: PathBuf,
    /// The old PDS answers.
    old_answers: bool,
}

/// An account, and what is done with it.
struct Job {
    did: Did,
    treatment: Treatment,
    /// The handle of its identity.
    handle: Option<String>,
}

/// What was found out of an account for a dry run.
struct Shown {
    did: Did,
    handle: String,
    ending: Ending,
    records: u64,
    car_bytes: u64,
    blobs: u64,
    blob_bytes: u64,
    missing: u64,
    notes: Vec<String>,
    refusals: Vec<String>,
}

/// `firekeep restore pds`
///
/// # Errors
/// When it cannot be begun, with what to do. What goes wrong with single accounts is in the report.
pub async fn pds(config: &Config, args: &RestorePdsArgs, as_json: bool) -> Result<u8, DaemonError> {
    let whole = Whole::open(config, args).await?;
    let jobs = whole.jobs().await?;
    if args.dry_run {
        let shown = whole.look(&jobs).await;
        return report::plan(&whole, &jobs, &shown, as_json);
    }
    eprint!("{}", report::intent(&whole, &jobs));
    if !args.yes && !secrets::confirmed()? {
        return Err(failed("nothing was changed".to_owned()));
    }
    let passwords = Mutex::new(Passwords::open(&args.passwords_file)?);
    let mut book = Book::open(&whole.folder, &Head::new(&whole.host.host, &whole.server.did))?;
    let invite = whole.invite(&jobs, &book).await?;
    let stopped = whole
        .run(
            &jobs,
            &mut book,
            &passwords,
            invite.as_ref().map(|code| code.as_str()),
        )
        .await?;
    report::done(&whole, &jobs, &book, stopped, as_json)
}

fn unread(error: &ReadError) -> DaemonError {
    let code = match error {
        ReadError::NoArchive { .. } | ReadError::NoBackup { .. } => exit::NO_BACKUP,
        _ => exit::FAILED,
    };
    let text = error.to_string();
    DaemonError { code, text }
}

fn dids(texts: &[String]) -> Result<Vec<Did>, DaemonError> {
    let did = |text: &String| text.parse().map_err(|_| usage(format!("{text:?} is no DID")));
    texts.iter().map(did).collect()
}

/// The host that is meant.
async fn choose_host(reader: &ArchiveReader, args: &RestorePdsArgs) -> Result<HostName, DaemonError> {
    let known = reader.known_hosts().await.map_err(|error| unread(&error))?;
    let name: HostName = match (&args.host, known.len()) {
        (Some(host), _) => host.parse().map_err(|_| usage(format!("{host:?} is no host")))?,
        (None, 1) => known.into_iter().next().expect("there is one"),
        (None, 0) => {
            let text = format!("{} names no host; give one with --host", reader.place());
            return Err(DaemonError {
                code: exit::NO_BACKUP,
                text,
            });
        }
        (None, _) => {
            let names: Vec<String> = known.iter().map(ToString::to_string).collect();
            return Err(usage(format!(
                "the archive has several hosts; choose one with --host: {}",
                names.join(", ")
            )));
        }
    };
    Ok(name)
}

impl<'a> Whole<'a> {
    async fn open(config: &'a Config, args: &'a RestorePdsArgs) -> Result<Self, DaemonError> {
        if let Some(from) = &args.from
            && !from.starts_with("file://")
            && !from.starts_with("s3://")
        {
            return Err(usage(
                "a whole PDS is restored from an archive: --from file:///… or s3://…; `restore account` takes other \
                 backups too",
            ));
        }
        let to = endpoint(config, "--to", &args.to)?;
        let rotation = Arc::new(read_secret(&args.rotation_key_file)?);
        let admin = args.admin_password_file.as_deref();
        let admin = admin.map(secrets::read_text).transpose()?;
        let table = match &args.table {
            None => BTreeMap::new(),
            Some(path) => {
                let cannot = |error: String| failed(format!("{}: {error}", path.display()));
                let text = std::fs::read_to_string(path).map_err(|error| cannot(error.to_string()))?;
                read_table(&text).map_err(cannot)?
            }
        };
        let reader = ArchiveReader::open(&config.archive, &std::env::temp_dir()).await;
        let reader = reader.map_err(|error| unread(&error))?;
        let name = choose_host(&reader, args).await?;
        let host = reader.known_host(&name).await.map_err(|error| unread(&error))?;
        let Some(any) = host.accounts.keys().next() else {
            return Err(DaemonError {
                code: exit::NO_BACKUP,
                text: format!("{} has no account of {name}", reader.place()),
            });
        };
        let old = host.url.clone().unwrap_or_else(|| format!("https://{name}"));
        let directory = directory(config, &[to.as_str(), old.as_str()])?;
        let pds = Pds::new(directory.http.clone(), &to, any, Zeroizing::default());
        let server = pds.describe().await?;
        let same_host = to
            .split_once("://")
            .is_some_and(|(_, rest)| rest == name.as_str());
        if same_host && !args.sequence_raised && !args.dry_run {
            return Err(failed(format!(
                "the new PDS has the host name of the old one, {name}, whose stream was seen up to {}: relays would \
                 pass over all that it says until its own numbers are higher. Stop it, raise them (`sqlite3 \
                 sequencer.sqlite \"UPDATE sqlite_sequence SET seq = {} WHERE name = 'repo_seq'\"`, or the highest \
                 that its relay names, whichever is more), start it, and say --sequence-raised",
                host.highest_seq,
                host.highest_seq + 1000
            )));
        }
        let old_answers = !same_host && {
            let old = Pds::new(directory.http.clone(), &old, any, Zeroizing::default());
            let asked = tokio::time::timeout(std::time::Duration::from_secs(10), old.describe()).await;
            matches!(asked, Ok(Ok(_)))
        };
        let folder = args.ledger.clone().unwrap_or_else(|| {
            let name = name
                .as_str()
                .replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
            config.data_dir.join("restore").join(format!("pds-{name}"))
        });
        let admin = admin.map(|password| Admin::new(directory.http.clone(), &to, password));
        Ok(Self {
            config,
            args,
            host,
            place: reader.place(),
            to,
            server,
            directory,
            rotation,
            admin,
            table,
            folder,
            old_answers,
        })
    }

    fn old(&self) -> &str {
        self.host.url.as_deref().unwrap_or(self.host.host.as_str())
    }

    /// Every account, and what is done with it. Identities are looked up now.
    async fn jobs(&self) -> Result<Vec<Job>, DaemonError> {
        let asked = Asked {
            only: dids(&self.args.only)?,
            except: dids(&self.args.except)?,
        };
        let unknown = asked
            .only
            .iter()
            .find(|did| !self.host.accounts.contains_key(did));
        if let Some(did) = unknown {
            return Err(usage(format!("{did} is no account of {}", self.host.host)));
        }
        let jobs = stream::iter(&self.host.accounts).map(|(did, account)| {
            let asked = &asked;
            async move {
                let known = Known {
                    did,
                    status: account.status.as_ref(),
                    erased: account.erased,
                    held: account.held,
                };
                if let Some(why) = known.left_out(asked) {
                    return Ok(Job {
                        did: did.clone(),
                        treatment: Treatment::Skip(why),
                        handle: None,
                    });
                }
                let (treatment, handle) = self.identity(&known).await?;
                let did = did.clone();
                Ok(Job {
                    did,
                    treatment,
                    handle,
                })
            }
        });
        let jobs: Vec<Result<Job, RestoreError>> = jobs.buffered(LOOKUPS).collect().await;
        Ok(jobs.into_iter().collect::<Result<_, _>>()?)
    }

    async fn identity(&self, known: &Known<'_>) -> Result<(Treatment, Option<String>), RestoreError> {
        // Who is at the new PDS already, and was not brought there by us, moved there.
        let path = self.folder.join(format!("{}.json", file_name(known.did)));
        let begun = ledger::read(&path)?.is_some_and(|state| state.pds_did == self.server.did);
        let ours = match begun {
            true => vec![self.old(), self.to.as_str()],
            false => vec![self.old()],
        };
        let admin = self.admin.is_some();
        if known.did.method() != DidMethod::Plc {
            // Its document may have gone with its host; its owner is told either way.
            let document = self.directory.document(known.did).await.ok();
            let host = document.as_ref().and_then(|document| document.host.as_ref());
            let host = host.map(|host| host.origin());
            let handle = document.and_then(|document| document.handle);
            return Ok((known.treatment(Points::To(host.as_deref()), &ours, admin), handle));
        }
        let log = self.directory.log(known.did).await?;
        Ok(match log.current() {
            None => (known.treatment(Points::Nowhere, &ours, admin), None),
            Some(state) => {
                let points = Points::To(state.pds.as_deref());
                (known.treatment(points, &ours, admin), state.handle.clone())
            }
        })
    }

    /// A code for all accounts that are not there yet, where the new PDS wants one and the admin is at hand.
    async fn invite(&self, jobs: &[Job], book: &Book) -> Result<Option<Zeroizing<String>>, DaemonError> {
        if let Some(path) = &self.args.invite_code_file {
            return secrets::read_text(path).map(Some);
        }
        let open = jobs.iter().filter(|job| {
            matches!(job.treatment, Treatment::Restore(_)) && !book.of(&job.did).is_some_and(|of| of.done)
        });
        match (self.server.invite_required, &self.admin, open.count() as u64) {
            (true, Some(admin), open @ 1..) => Ok(Some(admin.invite(open).await?)),
            _ => Ok(None),
        }
    }

    /// What the restore of one account is asked for with.
    async fn account(&self, job: &Job, ending: Ending) -> Result<(RestoreAccountArgs, bool), RestoreError> {
        let mut args = self.args.account(job.did.as_str());
        let row = self.table.get(&job.did);
        let path = self.folder.join(format!("{}.json", file_name(&job.did)));
        let begun = ledger::read(&path)?.filter(|state| state.pds_did == self.server.did);
        args.handle = match (row.and_then(|row| row.handle.clone()), begun) {
            (Some(handle), _) => Some(handle),
            (None, Some(state)) => Some(state.handle),
            (None, None) => self.other_handle(job).await?,
        };
        let email = row.and_then(|row| row.email.clone());
        let placeholder = email.is_none();
        args.email = Some(email.unwrap_or_else(|| placeholder_email(&job.did)));
        (args.ledger, args.ending) = (Some(path), ending);
        if self.admin.is_some() && args.invite_code_file.is_none() {
            // One is made when it is needed; this says no more than that there will be one.
            args.invite_code_file = Some(PathBuf::new());
        }
        let log = self.directory.log(&job.did).await?;
        let keys = log.current().map(|state| state.rotation_keys.as_slice());
        let dropped = self.args.drop_rotation_keys.iter();
        let dropped = dropped.filter(|key| keys.is_some_and(|keys| keys.contains(key)));
        args.drop_rotation_keys = dropped.cloned().collect();
        Ok((args, placeholder))
    }

    /// Another handle, if the one of the identity does not lead anywhere at the new PDS.
    async fn other_handle(&self, job: &Job) -> Result<Option<String>, RestoreError> {
        let (Some(handle), Some(domain)) = (&job.handle, &self.args.handle_domain) else {
            return Ok(None);
        };
        if self
            .server
            .domains
            .iter()
            .any(|served| handle.ends_with(served.as_str()))
        {
            return Ok(None);
        }
        let http = self.directory.http.clone();
        let pds = Pds::new(http, &self.to, &job.did, Zeroizing::default());
        Ok(match pds.owner(handle).await? {
            HandleOwner::Us => None,
            HandleOwner::Nobody | HandleOwner::Other(_) => Some(below(handle, domain)),
        })
    }

    async fn find(&self, job: &Job, args: &RestoreAccountArgs) -> Result<Found, DaemonError> {
        let place = (job.did.clone(), self.to.clone());
        let (rotation, directory) = (Some(Arc::clone(&self.rotation)), self.directory.clone());
        Found::of(self.config, args, place, rotation, directory).await
    }

    /// Proves every backup and plans every account; changes nothing.
    async fn look(&self, jobs: &[Job]) -> Vec<Result<Shown, (Did, String)>> {
        let open = jobs.iter().filter_map(|job| match job.treatment {
            Treatment::Restore(ending) => Some((job, ending)),
            Treatment::Skip(_) => None,
        });
        let shown = stream::iter(open).map(|(job, ending)| async move {
            let named = |text: String| (job.did.clone(), text);
            let account = self.account(job, ending).await;
            let (args, _) = account.map_err(|error| named(error.to_string()))?;
            let found = self.find(job, &args).await;
            let found = found.map_err(|error| named(error.text))?;
            let plan = found.findings().plan();
            let facts = &found.backup.facts;
            Ok(Shown {
                did: job.did.clone(),
                handle: plan.handle,
                ending,
                records: facts.records - facts.withheld.len() as u64,
                car_bytes: facts.car_bytes,
                blobs: facts.blobs.len() as u64,
                blob_bytes: plan.blob_bytes,
                missing: (plan.missing.len() + plan.too_large.len()) as u64,
                notes: plan.warnings,
                refusals: plan.refusals,
            })
        });
        shown.buffered(usize::from(self.args.parallel)).collect().await
    }
}

/// How an account stands in the end, as a word.
const fn state(ending: Ending) -> &'static str {
    match ending {
        Ending::Active => "active",
        Ending::Deactivated => "deactivated",
        Ending::TakenDown => "taken_down",
    }
}
