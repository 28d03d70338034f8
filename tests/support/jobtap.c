// SPDX-License-Identifier: MIT OR Apache-2.0

/* jobtap.c - a plugin for the job manager for tests of the simulator.
 *
 * In state RUN it starts a prolog, and wakes the reactor through an eventfd from a thread of its own. The reactor then
 * commits the key "test" of the job, and then finishes the prolog. With the plugin configuration {"manual":1}, the
 * service "go" wakes the reactor instead. The plugin rejects a configuration [test] with a member "bad", and a job
 * with the attribute system.reject.
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct flux_plugin flux_plugin_t;
typedef struct flux_plugin_arg flux_plugin_arg_t;
typedef struct flux_handle flux_t;
typedef struct flux_reactor flux_reactor_t;
typedef struct flux_watcher flux_watcher_t;
typedef struct flux_future flux_future_t;
typedef struct flux_txn flux_txn_t;
typedef struct flux_msg flux_msg_t;
typedef struct flux_msg_handler flux_msg_handler_t;
typedef int (*flux_plugin_f) (flux_plugin_t *, const char *, flux_plugin_arg_t *, void *);
typedef void (*flux_free_f) (void *);

extern int flux_plugin_set_name (flux_plugin_t *, const char *);
extern const char *flux_plugin_get_conf (flux_plugin_t *);
extern int flux_plugin_add_handler (flux_plugin_t *, const char *, flux_plugin_f, void *);
extern int flux_plugin_aux_set (flux_plugin_t *, const char *, void *, flux_free_f);
extern int flux_plugin_arg_unpack (flux_plugin_arg_t *, int, const char *, ...);
extern int flux_plugin_arg_set (flux_plugin_arg_t *, int, const char *);
extern flux_t *flux_jobtap_get_flux (flux_plugin_t *);
extern int flux_jobtap_service_register (flux_plugin_t *,
                                         const char *,
                                         void (*) (flux_t *, flux_msg_handler_t *, const flux_msg_t *, void *),
                                         void *);
extern int flux_jobtap_prolog_start (flux_plugin_t *, const char *);
extern int flux_jobtap_prolog_finish (flux_plugin_t *, uint64_t, const char *, int);
extern int flux_jobtap_raise_exception (flux_plugin_t *, uint64_t, const char *, int, const char *, ...);
extern int flux_jobtap_error (flux_plugin_t *, flux_plugin_arg_t *, const char *, ...);
extern void *flux_aux_get (flux_t *, const char *);
extern int flux_aux_set (flux_t *, const char *, void *, flux_free_f);
extern int flux_log (flux_t *, int, const char *, ...);
extern flux_reactor_t *flux_get_reactor (flux_t *);
extern flux_watcher_t *flux_fd_watcher_create (flux_reactor_t *,
                                               int,
                                               int,
                                               void (*) (flux_reactor_t *, flux_watcher_t *, int, void *),
                                               void *);
extern void flux_watcher_start (flux_watcher_t *);
extern void flux_watcher_destroy (flux_watcher_t *);
extern flux_txn_t *flux_kvs_txn_create (void);
extern void flux_kvs_txn_destroy (flux_txn_t *);
extern int flux_kvs_txn_put_raw (flux_txn_t *, int, const char *, const void *, size_t);
extern flux_future_t *flux_kvs_commit (flux_t *, const char *, int, flux_txn_t *);
extern int flux_future_then (flux_future_t *, double, void (*) (flux_future_t *, void *), void *);
extern int flux_future_get (flux_future_t *, const void **);
extern const char *flux_future_error_string (flux_future_t *);
extern void flux_future_destroy (flux_future_t *);
extern int flux_respond (flux_t *, const flux_msg_t *, const char *);
extern int flux_job_kvs_key (char *, int, uint64_t, const char *);

#define MAX 64

struct test {
    flux_plugin_t *p;
    flux_t *h;
    int efd;
    flux_watcher_t *w;
    bool manual;
    pthread_t threads[MAX];
    int nthreads;
    uint64_t jobs[MAX];
    int njobs;
    flux_future_t *futures[MAX];
    uint64_t committing[MAX];
};

static void *wake (void *arg)
{
    uint64_t one = 1;
    (void)!write (*(int *)arg, &one, sizeof (one));
    return NULL;
}

static void committed (flux_future_t *f, void *arg)
{
    struct test *t = arg;
    for (int i = 0; i < MAX; i++) {
        if (t->futures[i] != f)
            continue;
        uint64_t id = t->committing[i];
        int status = 0;
        if (flux_future_get (f, NULL) < 0) {
            status = 1;
            flux_jobtap_raise_exception (t->p, id, "test", 0, "commit failed: %s", flux_future_error_string (f));
        }
        if (flux_jobtap_prolog_finish (t->p, id, "test", status) < 0)
            flux_log (t->h, 3, "prolog_finish: %s", strerror (errno));
        t->futures[i] = NULL;
        flux_future_destroy (f);
        return;
    }
}

static void woken (flux_reactor_t *r, flux_watcher_t *w, int revents, void *arg)
{
    struct test *t = arg;
    uint64_t n;

    (void)r;
    (void)w;
    (void)revents;
    (void)!read (t->efd, &n, sizeof (n));
    while (t->njobs > 0) {
        uint64_t id = t->jobs[--t->njobs];
        char key[64];
        int i = 0;

        while (t->futures[i])
            i++;
        flux_job_kvs_key (key, sizeof (key), id, "test");
        flux_txn_t *txn = flux_kvs_txn_create ();
        flux_kvs_txn_put_raw (txn, 0, key, "\"canary\"", 8);
        t->futures[i] = flux_kvs_commit (t->h, NULL, 0, txn);
        t->committing[i] = id;
        flux_kvs_txn_destroy (txn);
        flux_future_then (t->futures[i], -1., committed, t);
    }
}

static void begin (struct test *t, uint64_t id)
{
    t->jobs[t->njobs++] = id;
    if (!t->manual)
        pthread_create (&t->threads[t->nthreads++], NULL, wake, &t->efd);
}

static int run_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    struct test *t = arg;
    uint64_t id;

    (void)topic;
    if (flux_plugin_arg_unpack (args, 0, "{s:I}", "id", &id) < 0)
        return -1;
    if (flux_jobtap_prolog_start (p, "test") < 0)
        return -1;
    begin (t, id);
    return 0;
}

/* A job in state RUN when the plugin is loaded has a prolog that an earlier plugin started. */
static int new_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    struct test *t = arg;
    uint64_t id;
    int state;

    (void)p;
    if (flux_plugin_arg_unpack (args, 0, "{s:I s:i}", "id", &id, "state", &state) < 0)
        return -1;
    flux_log (t->h, 6, "%s state=%d", topic, state);
    if (state == 16)
        begin (t, id);
    return 0;
}

static int validate_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    const char *reason = NULL;
    void *environment = NULL;

    (void)topic;
    (void)arg;
    if (flux_plugin_arg_unpack (args,
                                0,
                                "{s:{s:{s:{s?s s?o}}}}",
                                "jobspec",
                                  "attributes",
                                    "system",
                                      "reject", &reason,
                                      "environment", &environment) < 0)
        return flux_jobtap_error (p, args, "unpack failed");
    if (environment)
        return flux_jobtap_error (p, args, "the jobspec has an environment");
    if (reason)
        return flux_jobtap_error (p, args, "rejected: %s", reason);
    return 0;
}

static int conf_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    const char *bad = NULL;

    (void)topic;
    (void)arg;
    if (flux_plugin_arg_unpack (args, 0, "{s:{s?{s?s}}}", "conf", "test", "bad", &bad) < 0 || bad)
        return flux_jobtap_error (p, args, "test.bad: %s is refused", bad ? bad : "what");
    return 0;
}

static int query_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    struct test *t = arg;
    char buf[128];

    (void)p;
    (void)topic;
    snprintf (buf, sizeof (buf), "{\"inits\":%d}", *(int *)flux_aux_get (t->h, "test::inits"));
    return flux_plugin_arg_set (args, 1, buf);
}

static void go_cb (flux_t *h, flux_msg_handler_t *mh, const flux_msg_t *msg, void *arg)
{
    struct test *t = arg;

    (void)mh;
    wake (&t->efd);
    flux_respond (h, msg, "{\"going\":1}");
}

static void test_destroy (void *arg)
{
    struct test *t = arg;
    for (int i = 0; i < t->nthreads; i++)
        pthread_join (t->threads[i], NULL);
    for (int i = 0; i < MAX; i++)
        flux_future_destroy (t->futures[i]);
    flux_watcher_destroy (t->w);
    close (t->efd);
    flux_log (t->h, 6, "test plugin destroyed");
    free (t);
}

int flux_plugin_init (flux_plugin_t *p)
{
    struct test *t = calloc (1, sizeof (*t));
    const char *conf = flux_plugin_get_conf (p);
    int *inits;

    if (conf && strstr (conf, "\"fail\""))
        return -1;
    flux_plugin_set_name (p, "test");
    t->p = p;
    t->h = flux_jobtap_get_flux (p);
    if (!(inits = flux_aux_get (t->h, "test::inits"))) {
        inits = calloc (1, sizeof (*inits));
        flux_aux_set (t->h, "test::inits", inits, free);
    }
    ++*inits;
    t->manual = conf && strstr (conf, "\"manual\"");
    t->efd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
    t->w = flux_fd_watcher_create (flux_get_reactor (t->h), t->efd, 1, woken, t);
    flux_watcher_start (t->w);
    if (flux_plugin_aux_set (p, NULL, t, test_destroy) < 0
        || flux_plugin_add_handler (p, "conf.update", conf_cb, t) < 0
        || flux_plugin_add_handler (p, "job.validate", validate_cb, t) < 0
        || flux_plugin_add_handler (p, "job.new", new_cb, t) < 0
        || flux_plugin_add_handler (p, "job.state.run", run_cb, t) < 0
        || flux_plugin_add_handler (p, "plugin.*", query_cb, t) < 0)
        return -1;
    return flux_jobtap_service_register (p, "go", go_cb, t);
}
