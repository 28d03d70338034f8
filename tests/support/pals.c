// SPDX-License-Identifier: MIT OR Apache-2.0

/* pals.c - a plugin for the job shell that reads the option "cray-pals" when it is loaded, as Cray's PMI does, and
 * exports the value.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct flux_plugin flux_plugin_t;
typedef struct flux_plugin_arg flux_plugin_arg_t;
typedef struct flux_shell flux_shell_t;

extern int flux_plugin_set_name (flux_plugin_t *, const char *);
extern int flux_plugin_add_handler (flux_plugin_t *,
                                    const char *,
                                    int (*) (flux_plugin_t *, const char *, flux_plugin_arg_t *, void *),
                                    void *);
extern flux_shell_t *flux_plugin_get_shell (flux_plugin_t *);
extern int flux_shell_getopt (flux_shell_t *, const char *, char **);
extern int flux_shell_setenvf (flux_shell_t *, int, const char *, const char *, ...);

static char *option = NULL;

static int init_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    flux_shell_t *shell = flux_plugin_get_shell (p);
    const char *member = option ? strstr (option, "\"pmi-bootstrap\":[") : NULL;
    int ports[2];
    long long secret;

    (void)topic;
    (void)args;
    (void)arg;
    if (member && sscanf (member, "\"pmi-bootstrap\":[%d,%d,%lld]", &ports[0], &ports[1], &secret) == 3) {
        flux_shell_setenvf (shell, 1, "PMI_CONTROL_PORT", "%d,%d", ports[0], ports[1]);
        flux_shell_setenvf (shell, 1, "PMI_SHARED_SECRET", "%llu", (unsigned long long)secret);
    }
    if (option && strstr (option, "\"no-edit-env\":1"))
        flux_shell_setenvf (shell, 1, "PALS_NO_EDIT", "1");
    return 0;
}

int flux_plugin_init (flux_plugin_t *p)
{
    if (flux_shell_getopt (flux_plugin_get_shell (p), "cray-pals", &option) < 0)
        return -1;
    return flux_plugin_set_name (p, "pals") < 0 || flux_plugin_add_handler (p, "shell.init", init_cb, NULL) < 0 ? -1 : 0;
}
