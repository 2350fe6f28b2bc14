'use strict';
'require view';
'require uci';

// The way to subnetd's own page, which is in no frame of anybody's.
return view.extend({
	load: () => uci.load('subnetd'),

	render: () => {
		const [, host, port] = /^(.*):(\d+)$/.exec(uci.get('subnetd', 'web', 'listen') || '') || [null, '', '8411'];
		const href = `http://${host || window.location.hostname}:${port}/`;
		return E('div', { class: 'cbi-map' }, [
			E('h2', {}, 'subnetd'),
			E('p', {}, _('The mesh, the devices at home and their exits have a page of their own. Log in there with the password of root.')),
			E('a', { class: 'btn cbi-button cbi-button-apply', href, target: '_blank', rel: 'noreferrer' }, href),
		]);
	},

	handleSaveApply: null,
	handleSave: null,
	handleReset: null,
});
