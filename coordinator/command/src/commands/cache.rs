//! `obsdiff cache`.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use obsdiff_proto::{ByteSize, counted};
use obsdiff_worker::stored_model::{CachedCopy, ModelCache, ModelRemoval};
use serde::Serialize;

use crate::cli::CachedModelsArgs;
use crate::context::CommandContext;
use crate::job::StoreSettings;
use crate::{Error, Result};

/// Removes what is asked for, and shows what the cache holds then.
///
/// # Errors
/// A folder that is no cache, a URL that is not in it or in use, a file that cannot be removed, or when standard output is closed.
pub(super) fn cache(args: &CachedModelsArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let settings = StoreSettings::of(&context.environment);
    let Some(folder) = settings.cache() else {
        return Err(Error::key("--cache", "names no folder, and HOME is not set: name one"));
    };
    let cache = ModelCache::open(folder)?;
    let models = cache.as_ref().map(ModelCache::contents).transpose()?.unwrap_or_default().models;
    let asked: Vec<&str> = args.remove.iter().map(|url| url.trim_end_matches('/')).collect();
    let is_there = |url: &&&str| models.iter().any(|model| model.url.as_deref() == Some(**url));
    if let Some(url) = asked.iter().find(|url| !is_there(url)) {
        let problem =
            format!("is {url}, which is not in {}: `obsdiff cache` lists what is there", folder.display());
        return Err(Error::key("--remove", problem));
    }
    let (mut removed, mut used) = (Vec::new(), Vec::new());
    for model in models {
        let asked = model.url.as_deref().is_some_and(|url| asked.contains(&url));
        let mut bytes = 0;
        for what in removals(args, &model, asked) {
            match model.remove(what, &context.disk)? {
                Some(freed) => bytes += freed,
                None if asked => used.extend(model.url.clone()),
                None => {}
            }
        }
        if bytes > 0 {
            removed.push(RemovedModel { url: model.url, bytes });
        }
    }
    let contents = cache.as_ref().map(ModelCache::contents).transpose()?.unwrap_or_default();
    let shown = CacheReport {
        folder: folder.to_owned(),
        bytes: contents.models.iter().map(|model| model.bytes).sum(),
        models: contents.models.into_iter().map(ShownModel::from).collect(),
        removed,
        foreign: contents.foreign,
    };
    context.print(&shown, args.json)?;
    if used.is_empty() {
        return Ok(());
    }
    let used = used.join(", ");
    Err(Error::Session(format!("a process uses {used}: run the same command again once it has ended")))
}

/// What of a model goes, which is `asked` for by its URL or is not.
fn removals(args: &CachedModelsArgs, model: &CachedCopy, asked: bool) -> Vec<ModelRemoval> {
    let unused = |since: SystemTime| SystemTime::now().duration_since(since).unwrap_or_default();
    let is_old = args.older_than.is_some_and(|age| model.last_used.is_none_or(|last| unused(last) >= age));
    if asked || is_old {
        return vec![ModelRemoval::Whole];
    }
    let parts = [(args.replaced, ModelRemoval::Replaced), (args.unfinished, ModelRemoval::Unfinished)];
    parts.into_iter().filter(|(wanted, _)| *wanted).map(|(_, what)| what).collect()
}

/// What is removed, and what is there then.
#[derive(Serialize)]
struct CacheReport {
    folder: PathBuf,
    bytes: u64,
    models: Vec<ShownModel>,
    removed: Vec<RemovedModel>,
    foreign: Vec<PathBuf>,
}

#[derive(Serialize)]
struct RemovedModel {
    url: Option<String>,
    bytes: u64,
}

#[derive(Serialize)]
struct ShownModel {
    url: Option<String>,
    bytes: u64,
    unfinished_bytes: u64,
    replaced_bytes: u64,
    /// RFC 3339.
    last_used: Option<String>,
    in_use: Option<bool>,
}

impl From<CachedCopy> for ShownModel {
    fn from(model: CachedCopy) -> Self {
        Self {
            url: model.url,
            bytes: model.bytes,
            unfinished_bytes: model.unfinished_bytes,
            replaced_bytes: model.replaced_bytes,
            last_used: model.last_used.map(|time| humantime::format_rfc3339_seconds(time).to_string()),
            in_use: model.in_use,
        }
    }
}

fn named(url: Option<&str>) -> &str {
    url.unwrap_or("(a model without its URL, left by a removal that was cut off)")
}

impl fmt::Display for CacheReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for RemovedModel { url, bytes } in &self.removed {
            writeln!(f, "removed {}: {}", ByteSize(*bytes), named(url.as_deref()))?;
        }
        let count = counted(self.models.len(), "model");
        write!(f, "{} in {}: {count}", ByteSize(self.bytes), self.folder.display())?;
        for model in &self.models {
            write!(f, "\n{}\n  {model}", named(model.url.as_deref()))?;
        }
        for path in &self.foreign {
            write!(f, "\nnot obsdiff's, and left alone: {}", path.display())?;
        }
        Ok(())
    }
}

impl fmt::Display for ShownModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", ByteSize(self.bytes))?;
        match (self.in_use, &self.last_used) {
            (Some(true), _) => f.write_str(", in use")?,
            (_, Some(last)) => write!(f, ", last used {last}")?,
            (_, None) => {}
        }
        if self.in_use.is_none() {
            f.write_str(", perhaps in use: its file system has no locks")?;
        }
        for (bytes, what) in [(self.unfinished_bytes, "unfinished"), (self.replaced_bytes, "replaced")] {
            if bytes > 0 {
                write!(f, ", {} {what}", ByteSize(bytes))?;
            }
        }
        Ok(())
    }
}
