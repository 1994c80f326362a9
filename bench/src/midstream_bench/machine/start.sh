# First process after the root is there: runs the command, hands its output and exit status to the host
# (one virtio port each), and turns the machine off.
output=$(echo /dev/vport*p1)
status=$(echo /dev/vport*p2)
/bin/sh /run/command >"$output" 2>&1 </dev/null
echo "$?" >"$status"
echo o >/proc/sysrq-trigger
sleep 60
