#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='In a multi-user instance a job belongs to a project of its owner, or is rejected'

. "$(dirname "$0")/lib.sh"
need_flux
need_users

mkdir -m 0711 "$base/tokens"
tokens=$base/tokens
cleanup 'rm -rf "$tokens"'
for name in hydro fusion; do
	token_file "$tokens/$name.jwt" >/dev/null && chown "$OWNER" "$tokens/$name.jwt"
done

# groups USER…: prints their primary groups, as a list in TOML. Nobody is in the last one.
groups() {
	local user
	for user; do
		printf '"%s", ' "$(id -gn "$user")"
	done
	printf '"no-such-group"'
}

# configure HYDRO FUSION [LINE]: sets the members of the projects, each a list of users. LINE is added to
# fusion.
configure() {
	# shellcheck disable=SC2086
	table <<-END
		[[workflow-token.project]]
		name = "hydro"
		groups = [$(groups $1)]

		[[workflow-token.project]]
		name = "fusion"
		groups = [$(groups $2)]
		$3

		[[workflow-token.rule]]
		attribute = "system.workflow"
		source = "file"
		path = "$tokens/{project}.jwt"
	END
	# All processes use the munged of the system.
	sed -i /munge-socket/d "$CONFIG/workflow-token.toml" && { test -z "$INSTANCE" || flux config reload; }
}

# ask USER PROJECT COMMAND…: submits a job of the user that requests the project, or none if PROJECT is
# empty.
ask() {
	local user=$1 project=$2
	shift 2
	as "$user" flux "$1" --setattr=system.workflow=1 ${project:+--setattr=project=$project} "${@:2}"
}

# learn USER: makes the plugin look up the user, through a held job.
learn() {
	local id
	id=$(ask "$1" hydro submit --urgency=hold true 2>/dev/null) || return 0
	eventually is_decided "$id" && {
		flux cancel "$id" 2>/dev/null
		await clean "$id"
	}
}

is_decided() {
	case $(flux jobs -no '{state}' "$1") in NEW | DEPEND) return 1 ;; esac
}

# gets USER PROJECT TOKEN: succeeds if the job has the token of that project.
gets() {
	ask "$1" "$2" run printenv DW_WORKFLOW_TOKEN >out && test_cmp "$tokens/$3.jwt" out
}

# is_told USER PROJECT TEXT: succeeds if the submission fails with the text, and no job exists.
is_told() {
	flux jobs -a --user=all --count=1 -no '{id.dec}' >before &&
		test_must_fail ask "$1" "$2" submit true 2>err
	cat err
	grep -F -e "$3" err && flux jobs -a --user=all --count=1 -no '{id.dec}' >after && test_cmp before after
}

initrc initrc.lua
configure "" ""
instance_up 1 || skip "no instance of $OWNER could be started: $(tail -n 1 instance.log)"
as "$GUEST" flux run true 2>err || skip "the IMP does not run jobs of $GUEST for $OWNER: $(tr '\n' ' ' <err)"

test_expect_success 'the instance loads the plugin' '
	load
'

# Each row: the members of hydro, and those of fusion.
for row in "|$GUEST $OTHER" "$GUEST|$OTHER" "$OTHER|$GUEST" "$GUEST $OTHER|" "$GUEST $OTHER|$GUEST" "$OTHER|$GUEST $OTHER" \
	"$GUEST|$GUEST" "|"; do
	in_hydro=" ${row%|*} " in_fusion=" ${row#*|} "
	test_expect_success "with hydro:$in_hydro and fusion:$in_fusion" '
		configure "$in_hydro" "$in_fusion" &&
		learn "$GUEST" &&
		learn "$OTHER"
	'
	for user in "$GUEST" "$OTHER"; do
		only=
		for project in hydro fusion; do
			members=$in_hydro
			test $project = hydro || members=$in_fusion
			case $members in
			*" $user "*)
				only=$only$project
				test_expect_success "$user is admitted to $project and receives its token" '
					gets $user $project $project
				'
				;;
			*)
				test_expect_success "$user is not admitted to $project" '
					is_told $user $project "$user is not in project $project: it requires group"
				'
				;;
			esac
		done
		case $only in
		hydrofusion)
			test_expect_success "$user is in two, and must request one" '
				is_told $user "" "$user is in several: use -S project=NAME, one of hydro, fusion"
			'
			;;
		'')
			test_expect_success "$user is in none" '
				is_told $user "" "$user is in none: ask for access to one of hydro, fusion"
			'
			;;
		*)
			test_expect_success "$user is in $only without a request" '
				gets $user "" $only
			'
			;;
		esac
	done
done

test_expect_success 'the message names the groups that would help, and is not truncated' '
	configure "$GUEST" "$OTHER" "users = [ 0 ]" &&
	learn "$GUEST" &&
	is_told "$GUEST" fusion "$GUEST is not in project fusion: it requires group $(id -gn "$OTHER") or no-such-group" &&
	is_told "$GUEST" astro "there is no project \`astro\`" &&
	is_told "$GUEST" hydro/x "there is no project \`hydro/x\`" &&
	is_told "$GUEST" 5 "must be a string"
'

test_expect_success 'the default project applies to users in several projects' '
	configure "$GUEST" "$GUEST $OTHER" "default = true" &&
	learn "$GUEST" &&
	gets "$GUEST" "" fusion &&
	gets "$GUEST" hydro hydro &&
	gets "$OTHER" "" fusion
'

test_expect_success 'jobs of unknown users proceed, or fail with the same text' '
	configure "$GUEST" "$OTHER" &&
	gets "$GUEST" "" hydro &&
	configure "$GUEST" "$OTHER" &&
	gets "$GUEST" hydro hydro &&
	configure "$GUEST" "$OTHER" &&
	test_must_fail ask "$GUEST" fusion run printenv DW_WORKFLOW_TOKEN >out 2>err
	cat err &&
	test_must_be_empty out &&
	grep "$GUEST is not in project fusion: it requires group" err
'

# update USER ID UPDATE…
update() {
	as "$1" flux update "$2" "${@:3}"
}

# no_update USER ID TEXT UPDATE…: succeeds if the update is rejected with the text, and the job does not
# change.
no_update() {
	test_must_fail update "$1" "$2" "${@:4}" 2>err
	cat err
	grep -F -e "$3" err && has_no_event jobspec-update "$2"
}

test_expect_success 'nobody can update a pending job to a project of which its owner is not a member' '
	configure "$GUEST $OTHER" "$OTHER" &&
	learn "$GUEST" && learn "$OTHER" &&
	id=$(ask "$GUEST" hydro submit --urgency=hold true) &&
	await depend "$id" &&
	told="$GUEST is not in project fusion: it requires group" &&
	for user in "$GUEST" "$OWNER"; do
		no_update $user "$id" "$told" project=fusion &&
		no_update $user "$id" "$told" project=fusion duration=60s &&
		no_update $user "$id" "$told" attributes.system.project=fusion &&
		no_update $user "$id" "there is no project" project=astro &&
		no_update $user "$id" "must be a string" project=7 &&
		no_update $user "$id" "not supported" "attributes.system={\"project\":\"fusion\"}" || return
	done
'

test_expect_success 'the job runs in its project' '
	flux job urgency "$id" default &&
	await clean "$id" &&
	test "$(flux jobs -no "{result}" "$id")" = COMPLETED
'

test_expect_success 'a pending job can be updated to another project of its owner, and receives its token' '
	id=$(ask "$OTHER" hydro submit --urgency=hold sh -c "printenv DW_WORKFLOW_TOKEN") &&
	await depend "$id" &&
	update "$OTHER" "$id" project=fusion &&
	flux job urgency "$id" default &&
	await clean "$id" &&
	as "$OTHER" flux job attach "$id" >out &&
	test_cmp "$tokens/fusion.jwt" out
'

test_expect_success 'a running job stays in its project' '
	id=$(ask "$OTHER" hydro submit sleep 600) &&
	await start "$id" &&
	no_update "$OTHER" "$id" "cannot be changed any more" project=fusion &&
	flux cancel "$id" &&
	await clean "$id"
'

test_expect_success 'other updates are not affected' '
	id=$(ask "$GUEST" hydro submit --urgency=hold true) &&
	await depend "$id" &&
	configure "$GUEST $OTHER" "$OTHER" &&
	update "$GUEST" "$id" duration=60s &&
	events jobspec-update "$id" &&
	flux cancel "$id"
'

test_expect_success 'a user who has left the project when the job starts receives no token' '
	configure "$GUEST" "$OTHER" &&
	id=$(ask "$GUEST" hydro submit --urgency=hold true) &&
	await depend "$id" &&
	configure "" "$OTHER" &&
	flux job urgency "$id" default &&
	is_failed_delivery "$id" "$GUEST is not in project hydro: it requires group no-such-group"
'

test_expect_success 'without projects, updates of the attribute are unsupported, as before' '
	table </dev/null &&
	id=$(ask "$GUEST" whatever submit --urgency=hold true) &&
	await depend "$id" &&
	no_update "$GUEST" "$id" "update of attributes.system.project not supported" project=hydro &&
	flux cancel "$id"
'

test_expect_success 'the instance ends normally' 'instance_down'

test_done
