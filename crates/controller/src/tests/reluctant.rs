//! A directory's safe that refuses to replace a document when it is told to, and notes what is told.

use std::sync::{Arc, Mutex};

use testudo_store::Requester;

use super::*;
use crate::news::News;
use crate::safe::directory::Lock;
use crate::{Denial, DirSafe, Document, Members, Safe, SafeError, Sealed, Version};

#[derive(Clone)]
pub(super) struct Reluctant {
    safe: Arc<DirSafe>,
    refused: Arc<Mutex<Option<Document>>>,
    told: Arc<Mutex<Vec<News>>>,
}

impl Reluctant {
    pub(super) fn new(safe: DirSafe) -> Self {
        Self {
            safe: Arc::new(safe),
            refused: Arc::default(),
            told: Arc::default(),
        }
    }

    pub(super) fn refuse(&self, document: Option<Document>) {
        *self.refused.lock().unwrap() = document;
    }

    /// What was told under this reason.
    pub(super) fn told(&self, reason: &str) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let such = told.iter().filter(|news| news.reason == reason);
        such.map(|news| news.text.clone()).collect()
    }
}

impl Safe for Reluctant {
    type Term = Lock;

    async fn lead(&self) -> anyhow::Result<Lock> {
        self.safe.lead().await
    }

    async fn read(&self, document: Document) -> anyhow::Result<Option<Sealed>> {
        self.safe.read(document).await
    }

    async fn replace(
        &self,
        document: Document,
        text: &SecretBytes,
        over: Option<&Version>,
    ) -> Result<Version, SafeError> {
        if *self.refused.lock().unwrap() == Some(document) {
            return Err(SafeError::Failed(anyhow::anyhow!("403 Forbidden")));
        }
        self.safe.replace(document, text, over).await
    }

    fn place(&self, document: Document) -> String {
        self.safe.place(document)
    }

    async fn members(&self) -> anyhow::Result<Members> {
        self.safe.members().await
    }

    async fn is_gone(&self, name: &str, uid: &str) -> anyhow::Result<bool> {
        self.safe.is_gone(name, uid).await
    }

    async fn removed(&self) -> anyhow::Result<Vec<NodeName>> {
        self.safe.removed().await
    }

    async fn expelled(&self, node: &str) -> anyhow::Result<()> {
        self.safe.expelled(node).await
    }

    fn tell(&self, news: News) {
        self.told.lock().unwrap().push(news);
    }

    async fn authenticate(
        &self,
        request: &CertificateRequest,
        requester: &Requester,
    ) -> Result<(), Denial> {
        self.safe.authenticate(request, requester).await
    }
}
