// SPDX-License-Identifier: MIT OR Apache-2.0

//! A ticker on the reactor thread that runs only while work is pending.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    time::Duration,
};

use ffi::{Flux, Watcher};

/// The time between ticks.
const TICK: Duration = Duration::from_millis(100);

/// The number of ticks without pending work after which the ticker stops. So jobs that arrive one by one do not each
/// start it.
const IDLE_TICKS: u32 = 50;

/// Calls a function every 100 ms while the function reports pending work, and for 5 s after.
pub struct Ticker {
    flux: Flux<'static>,
    tick: Box<dyn Fn() -> bool>,
    watcher: RefCell<Option<Watcher>>,
    idle_ticks: Cell<u32>,
}

impl Ticker {
    /// Returns a stopped ticker. `tick` returns whether work is pending.
    pub fn new(flux: Flux<'static>, tick: impl Fn() -> bool + 'static) -> Rc<Self> {
        Rc::new(Self {
            flux,
            tick: Box::new(tick),
            watcher: RefCell::default(),
            idle_ticks: Cell::default(),
        })
    }

    /// Starts the ticker, unless it runs.
    ///
    /// # Errors
    /// Those of flux_timer_watcher_create(3).
    pub fn start(self: &Rc<Self>) -> io::Result<()> {
        if self.watcher.borrow().is_none() {
            let weak = Rc::downgrade(self);
            let watcher = self.flux.every(TICK.as_secs_f64(), move || {
                if let Some(ticker) = weak.upgrade() {
                    ticker.ticked();
                }
            })?;
            *self.watcher.borrow_mut() = Some(watcher);
        }
        Ok(())
    }

    /// Stops the ticker. It can be started again.
    pub fn stop(&self) {
        let watcher = self.watcher.borrow_mut().take();
        drop(watcher);
    }

    fn ticked(&self) {
        // After a panic, the next tick tries again.
        let is_pending = ffi::guard(true, || (self.tick)());
        self.idle_ticks
            .set(if is_pending { 0 } else { self.idle_ticks.get() + 1 });
        if self.idle_ticks.get() >= IDLE_TICKS {
            self.idle_ticks.set(0);
            self.stop();
        }
    }
}
