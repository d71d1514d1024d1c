"""Countries with their capital, the language most spoken or official there, and their continent."""

COUNTRIES = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
    France | Paris | French | Europe
    Germany | Berlin | German | Europe
    Italy | Rome | Italian | Europe
    Spain | Madrid | Spanish | Europe
    Portugal | Lisbon | Portuguese | Europe
    England | London | English | Europe
    Scotland | Edinburgh | English | Europe
    Wales | Cardiff | English | Europe
    Ireland | Dublin | English | Europe
    Austria | Vienna | German | Europe
    Greece | Athens | Greek | Europe
    Poland | Warsaw | Polish | Europe
    Hungary | Budapest | Hungarian | Europe
    Romania | Bucharest | Romanian | Europe
    Bulgaria | Sofia | Bulgarian | Europe
    Serbia | Belgrade | Serbian | Europe
    Croatia | Zagreb | Croatian | Europe
    Slovenia | Ljubljana | Slovenian | Europe
    Slovakia | Bratislava | Slovak | Europe
    Czechia | Prague | Czech | Europe
    Ukraine | Kyiv | Ukrainian | Europe
    Russia | Moscow | Russian | Europe
    Sweden | Stockholm | Swedish | Europe
    Norway | Oslo | Norwegian | Europe
    Denmark | Copenhagen | Danish | Europe
    Finland | Helsinki | Finnish | Europe
    Iceland | Reykjavik | Icelandic | Europe
    Estonia | Tallinn | Estonian | Europe
    Latvia | Riga | Latvian | Europe
    Lithuania | Vilnius | Lithuanian | Europe
    Albania | Tirana | Albanian | Europe
    Malta | Valletta | Maltese | Europe
    the Netherlands | Amsterdam | Dutch | Europe
    Switzerland | Bern | German | Europe
    Belarus | Minsk | Belarusian | Europe
    Moldova | Chisinau | Romanian | Europe
    North Macedonia | Skopje | Macedonian | Europe
    Montenegro | Podgorica | Montenegrin | Europe
    Bosnia and Herzegovina | Sarajevo | Bosnian | Europe
    Luxembourg | Luxembourg City | Luxembourgish | Europe
    Northern Ireland | Belfast | English | Europe
    Andorra | Andorra la Vella | Catalan | Europe
    Liechtenstein | Vaduz | German | Europe
    Japan | Tokyo | Japanese | Asia
    China | Beijing | Chinese | Asia
    Mongolia | Ulaanbaatar | Mongolian | Asia
    Vietnam | Hanoi | Vietnamese | Asia
    Thailand | Bangkok | Thai | Asia
    Laos | Vientiane | Lao | Asia
    Cambodia | Phnom Penh | Khmer | Asia
    Indonesia | Jakarta | Indonesian | Asia
    Malaysia | Kuala Lumpur | Malay | Asia
    India | New Delhi | Hindi | Asia
    Pakistan | Islamabad | Urdu | Asia
    Bangladesh | Dhaka | Bengali | Asia
    Nepal | Kathmandu | Nepali | Asia
    Iran | Tehran | Persian | Asia
    Iraq | Baghdad | Arabic | Asia
    Syria | Damascus | Arabic | Asia
    Jordan | Amman | Arabic | Asia
    Lebanon | Beirut | Arabic | Asia
    Yemen | Sanaa | Arabic | Asia
    Oman | Muscat | Arabic | Asia
    Qatar | Doha | Arabic | Asia
    Kuwait | Kuwait City | Arabic | Asia
    Saudi Arabia | Riyadh | Arabic | Asia
    Kazakhstan | Astana | Kazakh | Asia
    Uzbekistan | Tashkent | Uzbek | Asia
    South Korea | Seoul | Korean | Asia
    North Korea | Pyongyang | Korean | Asia
    the Philippines | Manila | Filipino | Asia
    Myanmar | Naypyidaw | Burmese | Asia
    Bhutan | Thimphu | Dzongkha | Asia
    Brunei | Bandar Seri Begawan | Malay | Asia
    East Timor | Dili | Tetum | Asia
    Afghanistan | Kabul | Pashto | Asia
    Tajikistan | Dushanbe | Tajik | Asia
    Turkmenistan | Ashgabat | Turkmen | Asia
    Kyrgyzstan | Bishkek | Kyrgyz | Asia
    Bahrain | Manama | Arabic | Asia
    the United Arab Emirates | Abu Dhabi | Arabic | Asia
    the Maldives | Male | Dhivehi | Asia
    Egypt | Cairo | Arabic | Africa
    Libya | Tripoli | Arabic | Africa
    Tunisia | Tunis | Arabic | Africa
    Algeria | Algiers | Arabic | Africa
    Morocco | Rabat | Arabic | Africa
    Sudan | Khartoum | Arabic | Africa
    Somalia | Mogadishu | Somali | Africa
    Ethiopia | Addis Ababa | Amharic | Africa
    Kenya | Nairobi | Swahili | Africa
    Uganda | Kampala | English | Africa
    Tanzania | Dodoma | Swahili | Africa
    Rwanda | Kigali | Kinyarwanda | Africa
    Ghana | Accra | English | Africa
    Nigeria | Abuja | English | Africa
    Liberia | Monrovia | English | Africa
    Zambia | Lusaka | English | Africa
    Botswana | Gaborone | English | Africa
    Namibia | Windhoek | English | Africa
    Senegal | Dakar | French | Africa
    Mali | Bamako | French | Africa
    Niger | Niamey | French | Africa
    Angola | Luanda | Portuguese | Africa
    Mozambique | Maputo | Portuguese | Africa
    Madagascar | Antananarivo | Malagasy | Africa
    Zimbabwe | Harare | English | Africa
    Malawi | Lilongwe | English | Africa
    Lesotho | Maseru | Sotho | Africa
    Mauritius | Port Louis | English | Africa
    Sierra Leone | Freetown | English | Africa
    the Gambia | Banjul | English | Africa
    Ivory Coast | Yamoussoukro | French | Africa
    Guinea | Conakry | French | Africa
    Guinea-Bissau | Bissau | Portuguese | Africa
    Cape Verde | Praia | Portuguese | Africa
    Togo | Lome | French | Africa
    Benin | Porto-Novo | French | Africa
    Cameroon | Yaounde | French | Africa
    Gabon | Libreville | French | Africa
    Chad | N'Djamena | French | Africa
    the Democratic Republic of the Congo | Kinshasa | French | Africa
    Mauritania | Nouakchott | Arabic | Africa
    Eritrea | Asmara | Tigrinya | Africa
    South Sudan | Juba | English | Africa
    Mexico | Mexico City | Spanish | North America
    Canada | Ottawa | English | North America
    Jamaica | Kingston | English | North America
    Cuba | Havana | Spanish | North America
    Guatemala | Guatemala City | Spanish | North America
    Honduras | Tegucigalpa | Spanish | North America
    Nicaragua | Managua | Spanish | North America
    Panama | Panama City | Spanish | North America
    Haiti | Port-au-Prince | French | North America
    the United States | Washington | English | North America
    Costa Rica | San Jose | Spanish | North America
    El Salvador | San Salvador | Spanish | North America
    the Dominican Republic | Santo Domingo | Spanish | North America
    Belize | Belmopan | English | North America
    Barbados | Bridgetown | English | North America
    the Bahamas | Nassau | English | North America
    Trinidad and Tobago | Port of Spain | English | North America
    Grenada | St. George's | English | North America
    Dominica | Roseau | English | North America
    Saint Lucia | Castries | English | North America
    Antigua and Barbuda | St. John's | English | North America
    Greenland | Nuuk | Greenlandic | North America
    Brazil | Brasilia | Portuguese | South America
    Argentina | Buenos Aires | Spanish | South America
    Chile | Santiago | Spanish | South America
    Peru | Lima | Spanish | South America
    Colombia | Bogota | Spanish | South America
    Venezuela | Caracas | Spanish | South America
    Ecuador | Quito | Spanish | South America
    Uruguay | Montevideo | Spanish | South America
    Paraguay | Asuncion | Spanish | South America
    Guyana | Georgetown | English | South America
    Suriname | Paramaribo | Dutch | South America
    Bolivia | Sucre | Spanish | South America
    Australia | Canberra | English | Oceania
    New Zealand | Wellington | English | Oceania
    Fiji | Suva | English | Oceania
    Samoa | Apia | Samoan | Oceania
    Tonga | Nuku'alofa | Tongan | Oceania
    Papua New Guinea | Port Moresby | English | Oceania
    the Solomon Islands | Honiara | English | Oceania
    the Marshall Islands | Majuro | Marshallese | Oceania
    Vanuatu | Port Vila | Bislama | Oceania
    Palau | Ngerulmud | Palauan | Oceania
    Kiribati | Tarawa | English | Oceania
    Tuvalu | Funafuti | Tuvaluan | Oceania
    Micronesia | Palikir | English | Oceania
    """.strip().splitlines()
)
"""Country, capital, language, continent."""
