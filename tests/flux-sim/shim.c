// SPDX-License-Identifier: MIT OR Apache-2.0

/* shim.c - the parts of the simulator that must be C: the C-variadic functions of the Flux API, and JSON objects that
 * behave as callers expect (an unpacked string belongs to the object from which it was unpacked).
 *
 * Every function formats or unpacks its arguments, and leaves the rest to a host_* function written in Rust.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOG_MAX 4096      /* a message of the job shell is cut there, as by Flux */
#define ERROR_MAX 160     /* flux_error_t */
#define NOTE_MAX 1024     /* the note of an exception */

typedef struct flux_handle flux_t;
typedef struct flux_plugin flux_plugin_t;
typedef struct flux_plugin_arg flux_plugin_arg_t;
typedef struct flux_shell flux_shell_t;

/* Written in Rust */
void sim_log (flux_t *h, int level, const char *text);
json_t *sim_arg_json (flux_plugin_arg_t *args, int flags);
void sim_arg_error (flux_plugin_arg_t *args, const char *text);
void sim_arg_errmsg (flux_plugin_arg_t *args, const char *text);
int sim_jobtap_is_active (flux_plugin_t *p, uint64_t id);
int sim_jobtap_post (flux_plugin_t *p, uint64_t id, const char *name, const char *context);
int sim_jobtap_may_update (flux_plugin_t *p, uint64_t id);
int sim_jobtap_update (flux_plugin_t *p, uint64_t id, const char *updates);
int sim_jobtap_raise (flux_plugin_t *p, uint64_t id, const char *type, int severity, const char *note);
json_t *sim_shell_info (flux_shell_t *shell);
json_t *sim_shell_option (flux_shell_t *shell, const char *name);
int sim_shell_setenv (flux_shell_t *shell, int overwrite, const char *name, const char *value);
void sim_shell_log (const char *component, int level, const char *file, int line, const char *text);
void flux_shell_log (const char *component, int level, const char *file, int line, const char *fmt, ...);
void sim_shell_fatal (const char *component, const char *file, int line, int exit_code, const char *text);

/* JSON objects, for Rust */

void *sim_json_parse (const char *text, char *error, size_t size)
{
    json_error_t e;
    json_t *o = json_loads (text, JSON_DECODE_ANY, &e);
    if (!o)
        snprintf (error, size, "%s", e.text);
    return o;
}

char *sim_json_dump (const json_t *o)
{
    return json_dumps (o, JSON_COMPACT | JSON_ENCODE_ANY);
}

int sim_json_update (json_t *o, json_t *other)
{
    return json_object_update (o, other);
}

void sim_json_free (json_t *o)
{
    json_decref (o);
}

/* Ends a message that did not fit with '+' */
static void format (char *buf, size_t size, const char *fmt, va_list ap)
{
    int n = vsnprintf (buf, size, fmt, ap);
    if (n < 0)
        buf[0] = '\0';
    else if ((size_t)n >= size)
        buf[size - 2] = '+';
}

static int invalid (void)
{
    errno = EINVAL;
    return -1;
}

/* Packs JSON from arguments, and returns its text */
static char *pack (const char *fmt, va_list ap)
{
    json_t *o = json_vpack_ex (NULL, 0, fmt, ap);
    char *text = o ? sim_json_dump (o) : NULL;

    json_decref (o);
    if (!text)
        errno = EINVAL;
    return text;
}

/* The C-variadic functions */

int flux_log (flux_t *h, int level, const char *fmt, ...)
{
    int saved_errno = errno;
    char *text = NULL;
    va_list ap;

    if (!fmt)
        return invalid ();
    va_start (ap, fmt);
    int n = vasprintf (&text, fmt, ap);
    va_end (ap);
    if (n < 0)
        return -1;
    sim_log (h, level, text);
    free (text);
    errno = saved_errno;
    return 0;
}

int flux_plugin_arg_unpack (flux_plugin_arg_t *args, int flags, const char *fmt, ...)
{
    json_error_t e;
    va_list ap;

    if (!args || !fmt)
        return invalid ();
    va_start (ap, fmt);
    int rc = json_vunpack_ex (sim_arg_json (args, flags), &e, 0, fmt, ap);
    va_end (ap);
    sim_arg_error (args, rc < 0 ? e.text : "");
    return rc;
}

int flux_jobtap_raise_exception (flux_plugin_t *p, uint64_t id, const char *type, int severity, const char *fmt, ...)
{
    char note[NOTE_MAX];
    va_list ap;

    if (!p || !type || !fmt)
        return invalid ();
    va_start (ap, fmt);
    format (note, sizeof (note), fmt, ap);
    va_end (ap);
    return sim_jobtap_raise (p, id, type, severity, note);
}

int flux_jobtap_event_post_pack (flux_plugin_t *p, uint64_t id, const char *name, const char *fmt, ...)
{
    char *context = NULL;
    va_list ap;

    if (!p || !name)
        return invalid ();
    if (sim_jobtap_is_active (p, id) < 0)
        return -1;
    if (fmt) {
        va_start (ap, fmt);
        context = pack (fmt, ap);
        va_end (ap);
        if (!context)
            return -1;
    }
    int rc = sim_jobtap_post (p, id, name, context);
    int saved_errno = errno;
    free (context);
    errno = saved_errno;
    return rc;
}

int flux_jobtap_jobspec_update_id_pack (flux_plugin_t *p, uint64_t id, const char *fmt, ...)
{
    va_list ap;

    if (!p || !fmt || sim_jobtap_may_update (p, id) < 0)
        return invalid ();
    va_start (ap, fmt);
    char *updates = pack (fmt, ap);
    va_end (ap);
    if (!updates)
        return -1;
    int rc = sim_jobtap_update (p, id, updates);
    int saved_errno = errno;
    free (updates);
    errno = saved_errno;
    return rc;
}

int flux_jobtap_error (flux_plugin_t *p, flux_plugin_arg_t *args, const char *fmt, ...)
{
    char text[ERROR_MAX];
    va_list ap;

    (void)p;
    if (args && fmt) {
        va_start (ap, fmt);
        format (text, sizeof (text), fmt, ap);
        va_end (ap);
        if (text[0] != '\0')
            sim_arg_errmsg (args, text);
    }
    return -1;
}

int flux_shell_info_unpack (flux_shell_t *shell, const char *fmt, ...)
{
    json_error_t e;
    json_t *info;
    va_list ap;

    if (!shell || !fmt)
        return invalid ();
    if (!(info = sim_shell_info (shell)))
        return -1;
    va_start (ap, fmt);
    int rc = json_vunpack_ex (info, &e, 0, fmt, ap);
    va_end (ap);
    return rc;
}

int flux_shell_getopt_unpack (flux_shell_t *shell, const char *name, const char *fmt, ...)
{
    json_error_t e;
    json_t *option;
    va_list ap;

    if (!shell || !name)
        return invalid ();
    if (!(option = sim_shell_option (shell, name)))
        return 0;
    va_start (ap, fmt);
    int rc = json_vunpack_ex (option, &e, 0, fmt, ap);
    va_end (ap);
    if (rc < 0) {
        flux_shell_log (NULL, 3, __FILE__, __LINE__, "shell_getopt: unpack error: %s", e.text);
        return -1;
    }
    return 1;
}

int flux_shell_setenvf (flux_shell_t *shell, int overwrite, const char *name, const char *fmt, ...)
{
    char *value = NULL;
    va_list ap;

    if (!shell || !name || !fmt)
        return invalid ();
    va_start (ap, fmt);
    int n = vasprintf (&value, fmt, ap);
    va_end (ap);
    if (n < 0)
        return -1;
    int rc = sim_shell_setenv (shell, overwrite, name, value);
    /* The value may be a secret: nothing of it stays in freed memory of the simulator. */
    explicit_bzero (value, (size_t)n);
    int saved_errno = errno;
    free (value);
    errno = saved_errno;
    return rc;
}

void flux_shell_log (const char *component, int level, const char *file, int line, const char *fmt, ...)
{
    char text[LOG_MAX];
    va_list ap;

    if (!fmt)
        return;
    va_start (ap, fmt);
    format (text, sizeof (text), fmt, ap);
    va_end (ap);
    sim_shell_log (component, level, file, line, text);
}

void flux_shell_fatal (const char *component,
                       const char *file,
                       int line,
                       int errnum,
                       int exit_code,
                       const char *fmt, ...)
{
    char text[LOG_MAX];
    va_list ap;

    va_start (ap, fmt);
    format (text, sizeof (text), fmt ? fmt : "fatal error", ap);
    va_end (ap);
    if (errnum != 0) {
        size_t used = strlen (text);
        snprintf (text + used, sizeof (text) - used, ": %s", strerror (errnum));
    }
    sim_shell_fatal (component, file, line, exit_code, text);
}
