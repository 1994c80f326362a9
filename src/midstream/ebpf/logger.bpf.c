// SPDX-License-Identifier: GPL-2.0-only
/* The logger: give replies the address that the sensor connected to.
 *
 * A sensor's packets come through the hardworker, and so with its MAC address, but with the sensor's
 * own IP address; the logger's replies go straight back and would bear an address that the sensor
 * never heard of. Ingress remembers which connections came through the hardworker, egress puts the
 * hardworker's address into their replies. Connections made directly to the logger are left alone.
 */
#include <linux/pkt_cls.h>

#include "bpf.h"
#include "const.h"
#include "packet.h"
#include "ports.h"
#include "sensors.h"
#include "settings.h"

struct peer {
	__be32 ip;
	__be16 port;
	__be16 marked; /* the port that it has connected to */
};

/* Bounded by number: the least recently used connection makes room, and is learned anew from its
 * next packet.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct peer);
	__type(value, __u8);
	__uint(max_entries, 65536);
} through_hardworker SEC(".maps");

SEC("tc") int midstream_logger_ingress(struct __sk_buff *skb)
{
	struct headers h;
	struct peer peer = {};
	__u8 one = 1;

	if (skb->protocol != bswap16(ETH_P_IP) || bpf_skb_load_bytes(skb, 0, &h, sizeof(h)) ||
	    IP_VERSION_LENGTH(&h.ip) != IP_VERSION_4_NO_OPTIONS || h.ip.daddr != bswap32(LOGGERS[0].ip) ||
	    h.ip.protocol != IPPROTO_TCP || h.ip.frag_off & IP_FRAGMENT_OFFSET || !is_marked_port(h.tcp.dest))
		return TC_ACT_UNSPEC;

	peer.ip = h.ip.saddr;
	peer.port = h.tcp.source;
	peer.marked = h.tcp.dest;
	if (!same_mac(h.eth.h_source, HARDWORKER_MAC)) {
		/* The port once used through the hardworker now connects directly. */
		if (TCP_FLAGS(&h.tcp) & TCP_SYN)
			bpf_map_delete_elem(&through_hardworker, &peer);
		return TC_ACT_UNSPEC;
	}
	/* What the hardworker itself sends has its own address, and its replies need no other. */
	if (find_sensor(h.ip.saddr) && !bpf_map_lookup_elem(&through_hardworker, &peer))
		bpf_map_update_elem(&through_hardworker, &peer, &one, BPF_ANY);
	return TC_ACT_UNSPEC;
}

SEC("tc") int midstream_logger_egress(struct __sk_buff *skb)
{
	const __u32 from = bswap32(LOGGERS[0].ip), to = bswap32(HARDWORKER_IP);
	struct headers h;
	struct peer peer = {};

	if (skb->protocol != bswap16(ETH_P_IP) || bpf_skb_load_bytes(skb, 0, &h, sizeof(h)) ||
	    IP_VERSION_LENGTH(&h.ip) != IP_VERSION_4_NO_OPTIONS || h.ip.saddr != from || h.ip.protocol != IPPROTO_TCP ||
	    h.ip.frag_off & IP_FRAGMENT_OFFSET || !is_marked_port(h.tcp.source))
		return TC_ACT_UNSPEC;

	peer.ip = h.ip.daddr;
	peer.port = h.tcp.dest;
	peer.marked = h.tcp.source;
	if (!bpf_map_lookup_elem(&through_hardworker, &peer))
		return TC_ACT_UNSPEC;

	/* The helpers know whether the network card is still to fill in TCP's checksum. */
	if (bpf_l4_csum_replace(skb, offsetof(struct headers, tcp.check), from, to, BPF_F_PSEUDO_HDR | sizeof(to)) ||
	    bpf_l3_csum_replace(skb, offsetof(struct headers, ip.check), from, to, sizeof(to)) ||
	    bpf_skb_store_bytes(skb, offsetof(struct headers, ip.saddr), &to, sizeof(to), 0))
		return TC_ACT_SHOT; /* out of memory: a half-changed packet must not leave */
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "GPL";
